"""The xDS server: ADS in its delta and state-of-the-world variants, over one set of subscriptions."""
