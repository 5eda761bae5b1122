"""One owner for each kernel resource: engine, nftables, network namespaces."""
