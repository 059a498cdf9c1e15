"""Chains: commands that build on each other's runs, in a file, run and reported as one."""
