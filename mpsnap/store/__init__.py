"""Stores: where snapshots outlive the cluster that took them."""
