"""A benchmark of the data path beside other proxies, on one machine.

Method. Every proxy does the same work with as many workers, on cores of its own; load generator and back end
have the others. All is in one network namespace and talks over its loopback: no veth, NAT or filter of the
machine is on the way, and it is the same for all. Rounds are interleaved and their order rotates, so that what
drifts hits everyone. What is compared is the ratio of two measurements of the same round; the table shows the
median of the ratios with an interval. A measurement during which the hypervisor took the processor away is
dropped and counted. CPU time is the kernel's own account of each thread of the proxy.
"""
