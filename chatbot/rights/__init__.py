"""What people and the law may ask of stored conversations: retention, export, erasure, legal hold.

docs/data.md says it for administrators, docs/decisions/0014-data-rights.md why it is so.
"""
