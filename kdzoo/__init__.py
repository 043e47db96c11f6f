"""kdzoo: a zoo of knowledge-distillation methods. Importing it imports nothing heavy."""

__version__ = "0.1.0"
