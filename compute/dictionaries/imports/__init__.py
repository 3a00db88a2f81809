"""Dictionaries that others have trained, read from the layouts in which people have them.

``import_dictionary`` finds one, in a folder or on the Hugging Face Hub, and turns it into a
:class:`~compute.dictionaries.Dictionary` that gives the same codes and reconstructions up to the
length of decoder rows, which is 1 here.
"""

from compute.dictionaries.imports.imported import Claims, Imported
from compute.dictionaries.imports.layouts import import_dictionary

__all__ = ["Claims", "Imported", "import_dictionary"]
