// Package inventory reads the file that describes a mesh to the policy tools, so that a policy can be tried out without a
// coordinator:
//
//	{
//	  "users": [{"name": "ann", "email": "ann@example.com", "roles": ["admin"]}],
//	  "nodes": [
//	    {"name": "laptop", "ipv4": "100.64.0.1", "ipv6": "fd7a:115c:a1e0::1", "user": "ann", "facts": {"node:os": "linux"},
//	     "admitted": true},
//	    {"name": "router", "ipv4": "100.64.0.2", "ipv6": "fd7a:115c:a1e0::2", "tags": ["tag:router"],
//	     "advertised": ["10.33.0.0/16"], "approved": ["10.33.0.0/16"]}
//	  ],
//	  "range": "100.64.0.0/10"
//	}
//
// A node has either a user or tags, and an address of each family. The mesh's IPv6 prefix is the /48 that contains the
// nodes' addresses. The fact user:authAge is how many seconds ago the user of the node logged in. Admitted means that an
// administrator approved the node.
//
// The file is parsed strictly, since a mistake in it could make a policy look better than it is. The package does no I/O.
package inventory
