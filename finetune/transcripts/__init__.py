"""Support transcripts of several formats, read line by line into one canonical form."""

from finetune.transcripts.model import Dialogue, Reason, Rejected, canonical_line
from finetune.transcripts.readers import READERS, read_transcripts
from finetune.transcripts.table import Columns

__all__ = [
    "READERS",
    "Columns",
    "Dialogue",
    "Reason",
    "Rejected",
    "canonical_line",
    "read_transcripts",
]
