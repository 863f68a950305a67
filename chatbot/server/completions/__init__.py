"""The OpenAI-compatible API: ``/v1/chat/completions`` and ``/v1/models``. docs/api.md has it in
full; the errors, the parameters and the chunks are those of OpenAI's reference."""
