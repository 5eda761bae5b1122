"""The Istio API: values of its resources, strict decoding, look-up, and analysis across resources."""
