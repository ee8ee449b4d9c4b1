package acl

import (
	"net/netip"
	"slices"
)

// InternetPrefixes returns what autogroup:internet covers, sorted: what exit nodes serve.
func InternetPrefixes() []netip.Prefix { return slices.Clone(internetPrefixes) }
