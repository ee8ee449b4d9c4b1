// Package coordinator is a control server: it assembles the parts, runs them, and shuts them down in order.
//
//	    443                                             DIR/admin.sock
//	     │                                                    │
//	┌─ control ─┐   enrolment, renewal, endpoints         ┌─ api ─┐
//	│  streams  │──────────────┐          ┌───────────────│       │
//	└─────▲─────┘              ▼          ▼               └───────┘
//	      │ netmaps      ┌── directory ──────┐   policy staged
//	      │ and deltas   │ single writer     │   and tested first
//	┌ distribute ┐       │ of all that lasts │──► store: one file
//	│    hub     │◄──────┤                   │
//	└────────────┘       └────────▲──────────┘
//	                              │ certificates
//	                           issuer: DIR/pki
//
// Everything from outside (the listener, the clock, randomness) is passed to New, so that a whole mesh can run in one process,
// in virtual time.
package coordinator
