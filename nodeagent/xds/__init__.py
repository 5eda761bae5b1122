"""The xDS client: streams, subscriptions, ACK and NACK, cache."""
