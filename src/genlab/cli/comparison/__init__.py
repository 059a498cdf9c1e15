"""The parts of scripts/compare.py: reading, differences, protocols, groups, table, curves, page. Free of torch."""
