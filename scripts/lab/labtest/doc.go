// Package labtest gives tests a [lab.World]. What they need of the system is checked once: where network namespaces
// cannot be had, tests are skipped with the reason and the way to run them, or fail where REDOUBT_REQUIRE_ROOT=1 asks for
// that, as continuous integration does.
//
//	func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }
//
//	func TestX(t *testing.T) {
//		w := labtest.World(t)
//		...
//	}
package labtest
