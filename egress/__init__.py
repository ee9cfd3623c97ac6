"""Names-only egress: policy, resolver, gateway and inspection. Knows no sandbox."""
