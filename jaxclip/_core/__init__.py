"""Trees, states and measurements that every transformation shares."""
