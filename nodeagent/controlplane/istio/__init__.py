"""The Istio API: decoding with strict checks, validation."""
