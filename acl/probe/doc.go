// Package probe reads the questions of `policy eval` and writes its answers, one JSON object per line:
//
//	{"at":"n2","src_ip":"100.64.0.1","dst_ip":"100.64.0.2","proto":"tcp","port":22}
//	{"allowed":true,"rule":"grants[0]","mode":"enforce"}
//
// The rule is the one that allows or denies, empty if no rule is about the connection. Unknown keys of a probe are ignored,
// so that a file may carry notes. There are millions of probes, so flat objects without escapes are parsed by hand;
// encoding/json parses the rest.
package probe
