"""The `frontdesk console` command."""

from typing import Annotated

import typer

from ui.address import console_port, server_url


def console(
    port: Annotated[
        int | None, typer.Option(help="Port. Default: FRONTDESK_CONSOLE_PORT, or 8501.")
    ] = None,
    address: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 in a container.")
    ] = "127.0.0.1",
) -> None:
    """Serve the staff console (reviews, training, models, playground)."""
    try:
        chosen = console_port() if port is None else port
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(f"console: http://{address}:{chosen} (server: {server_url()})")
    from ui.server import serve  # Streamlit takes a second to import: not for `frontdesk --help`

    serve(address, chosen)


def add_commands(app: typer.Typer) -> None:
    """Entry point of the group ``frontdesk.commands``."""
    app.command("console")(console)
