// Package coordinator is one control server: it puts the parts together, runs them, and ends them in order.
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
// Everything from outside (the listener, the clock, randomness) is given to New, so that a whole mesh can run in one process,
// in virtual time.
package coordinator
