"""The certificate authority: who may have which certificate, and the issuing of it."""
