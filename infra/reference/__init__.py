"""Makes the pages about the warehouse: docs/dictionary from its catalog, docs/analytics from its published marts."""
