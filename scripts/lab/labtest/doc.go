// Package labtest gives tests a [lab.World]. It checks once what tests need from the system: without network namespaces,
// tests are skipped with the reason and the way to run them, or fail if REDOUBT_REQUIRE_ROOT=1, as in continuous integration.
//
//	func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }
//
//	func TestX(t *testing.T) {
//		w := labtest.World(t)
//		...
//	}
package labtest
