"""The methods: one folder each, behind ``ilcp.codec.Codec``, found through the entry-point group ``ilcp.codecs``."""
