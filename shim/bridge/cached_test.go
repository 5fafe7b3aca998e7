package bridge

import "testing"

func TestCachedIsOfTheUserspaceDatapath(t *testing.T) {
	section := func(name, first, second string) string {
		return name + ":\n  flows         : (current 3) (avg 2) (max 5) (limit 0)\n  dump duration : 1ms\n  ufid enabled : true\n\n  7: (keys " + first + ")\n  8: (keys " + second + ")\n"
	}
	for shown, want := range map[string]bool{
		"":                                      false,
		section("netdev@ovs-netdev", "0", "0"):  false,
		section("netdev@ovs-netdev", "0", "3"):  true,
		section("netdev@ovs-netdev", "10", "0"): true,
		section("system@ovs-system", "4", "4"):  false,
		section("netdev@ovs-netdev", "0", "0") + section("system@ovs-system", "1", ""): false,
		section("system@ovs-system", "1", "0") + section("netdev@ovs-netdev", "1", ""): true,
	} {
		if got := cached(shown); got != want {
			t.Errorf("%t by\n%s", got, shown)
		}
	}
}
