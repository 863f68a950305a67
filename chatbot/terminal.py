"""What the commands print: rows and facts in which nothing is ever cut.

Ids, setting names and paths are there to be copied. Where a table has no room for its columns,
each row becomes two or more lines; where standard output is no terminal, there is always room.
"""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

UNLIMITED = 100_000  # columns of a pipe or a file: whoever reads it breaks lines as they like


def console(stderr: bool = False) -> Console:
    """Standard output (or error): as wide as the terminal, without a limit where there is none."""
    made = Console(stderr=stderr)
    if not made.is_terminal:
        made.width = UNLIMITED
    return made


def make_table(*names: str, caption: str = "") -> Table:
    """A table whose cells go on in the next line where they are too long."""
    columns = [Column(name, overflow="fold") for name in names]
    return Table(*columns, caption=caption or None, caption_justify="left")


def print_rows(
    out: Console, names: Sequence[str], rows: Iterable[Sequence[str]], title: str = ""
) -> None:
    """A table with a row a line, if there is room; else the first cell of a row on a line of its
    own, and the others below it with their names."""
    cells = [list(row) for row in rows]
    table = make_table(*names)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    if title:
        out.print(title, style="italic", markup=False, soft_wrap=True)
    if Measurement.get(out, out.options.update(width=UNLIMITED), table).maximum <= out.width:
        out.print(table)
        return
    for first, *others in cells:
        out.print(Text(first, style="bold"), soft_wrap=True)
        told = [
            Text.assemble((f"{name} ", "dim"), cell)
            for name, cell in zip(names[1:], others, strict=True)
            if cell
        ]
        out.print(Padding(Text(" · ").join(told), (0, 0, 0, 2)))


def print_facts(out: Console, facts: Iterable[tuple[str, str]]) -> None:
    """A name and its value a line. Long values run on, so that they can be copied as one."""
    told = list(facts)
    width = max((len(name) for name, _ in told), default=0)
    for name, value in told:
        first, *more = value.split("\n")
        head = Text.assemble("  ", (name.ljust(width), "bold"), "  ", first)
        out.print(head, soft_wrap=True)
        for line in more:
            out.print(Text(" " * (width + 4) + line), soft_wrap=True)
