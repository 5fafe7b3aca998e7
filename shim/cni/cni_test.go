package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/veth"
)

func TestConfigIsReadAndRefused(t *testing.T) {
	const ipam = `"ipam": {"type": "host-local"}`
	c, err := parse([]byte(`{"cniVersion": "1.1.0", "name": "weir", "type": "weir-cni", ` + ipam + `}`))
	if err != nil || c.Bridge != "br-weir" || c.Socket != "/run/weir/shim.sock" || c.timeout != 10*time.Second || c.mac != nil {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	c, err = parse([]byte(`{"bridge": "b", "timeout": "1m", "mtu": 1400, "runtimeConfig": {"mac": "02:00:00:00:00:01"}, "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}], ` + ipam + `}`))
	if err != nil || c.Bridge != "b" || c.timeout != time.Minute || c.MTU != 1400 || c.mac.String() != "02:00:00:00:00:01" || len(c.ValidAttachments) != 1 {
		t.Errorf("all given: %+v, %v", c, err)
	}
	for text, code := range map[string]uint{
		`{`:                                 types.ErrDecodingFailure,
		`{}`:                                types.ErrInvalidNetworkConfig,
		`{"timeout": "soon", ` + ipam + `}`: types.ErrInvalidNetworkConfig,
		`{"timeout": "-1s", ` + ipam + `}`:  types.ErrInvalidNetworkConfig,
		`{"mtu": -1, ` + ipam + `}`:         types.ErrInvalidNetworkConfig,
		`{"runtimeConfig": {"mac": "01:00:00:00:00:01"}, ` + ipam + `}`:   types.ErrInvalidNetworkConfig,
		`{"cniVersion": "1.1.0", "prevResult": {"ips": 3}, ` + ipam + `}`: types.ErrDecodingFailure,
	} {
		var e *types.Error
		if _, err := parse([]byte(text)); !errors.As(err, &e) || e.Code != code {
			t.Errorf("%s: %v, want code %d", text, err, code)
		}
	}
}

func TestPodIsNamedByTheRuntime(t *testing.T) {
	p, err := parsePod("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u")
	if err != nil || p != (pod{"ns", "p", "u"}) {
		t.Errorf("%+v, %v", p, err)
	}
	var e *types.Error
	if _, err := parsePod("K8S_POD_NAME=p"); !errors.As(err, &e) || e.Code != types.ErrInvalidEnvironmentVariables {
		t.Errorf("no Namespace: %v", err)
	}
}

func TestNamesAndAddressesOfALink(t *testing.T) {
	name := HostName(strings.Repeat("c", 64), "eth0")
	if len(name) != 15 || name != HostName(strings.Repeat("c", 64), "eth0") || name == HostName(strings.Repeat("c", 64), "eth1") {
		t.Errorf("name %q", name)
	}
	if got := macOf(netip.MustParseAddr("10.1.2.3")).String(); got != "0a:58:0a:01:02:03" {
		t.Errorf("MAC %s", got)
	}
	if a, b := macOf(netip.MustParseAddr("fd00::1")), macOf(netip.MustParseAddr("fd00::2")); len(a) != 6 || a.String() == b.String() {
		t.Errorf("MACs %s, %s", a, b)
	}
	var r current.Result
	if _, err := addresses(&r); err == nil {
		t.Error("a result without addresses was taken")
	}
	if err := json.Unmarshal([]byte(`{"cniVersion": "1.0.0", "ips": [{"address": "10.0.1.5/24", "gateway": "10.0.1.1"}, {"address": "fd00::5/64"}]}`), &r); err != nil {
		t.Fatal(err)
	}
	got, err := addresses(&r)
	if want := []veth.Address{{IP: netip.MustParseAddr("10.0.1.5"), Gateway: netip.MustParseAddr("10.0.1.1")}, {IP: netip.MustParseAddr("fd00::5")}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

// What ADD writes on a port is what CHECK looks for.
func TestPortIsKnownByItsIDs(t *testing.T) {
	a := &attachment{network: "weir", containerID: "c", pod: pod{"ns", "p", "u"}, link: veth.Config{Host: "weirx", Pod: "eth0", NetNS: "/run/netns/x", MAC: macOf(netip.MustParseAddr("10.0.1.5")),
		Addresses: []veth.Address{{IP: netip.MustParseAddr("10.0.1.5")}, {IP: netip.MustParseAddr("fd00::5")}}}}
	ids := a.externalIDs()
	want := map[string]string{"pod-namespace": "ns", "pod-name": "p", "pod-uid": "u", "attached-mac": "0a:58:0a:00:01:05", "ip-addresses": "10.0.1.5,fd00::5",
		"container-id": "c", "container-iface": "eth0", "container-netns": "/run/netns/x", "cni-network": "weir"}
	if d := cmp.Diff(want, ids); d != "" {
		t.Errorf("external_ids (-want +got):\n%s", d)
	}
	good := bridge.Port{Name: "weirx", Number: 3, ExternalIDs: ids}
	if got := portAddresses(good); !slices.Equal(got, a.ips()) {
		t.Errorf("addresses of the port: %v, want %v", got, a.ips())
	}
	if got := portAddresses(bridge.Port{Name: "weirx"}); len(got) != 0 {
		t.Errorf("addresses of another's port: %v", got)
	}
	for _, tc := range []struct {
		ports []bridge.Port
		words string
	}{
		{[]bridge.Port{{Name: "other"}, good}, ""},
		{nil, "is not on bridge br"},
		{[]bridge.Port{{Name: "weirx", Number: 3}}, "external_ids"},
		{[]bridge.Port{{Name: "weirx", Error: "no such device", ExternalIDs: ids}}, "no such device"},
	} {
		if err := a.onBridge(tc.ports, "br"); (err == nil) != (tc.words == "") || (err != nil && !strings.Contains(err.Error(), tc.words)) {
			t.Errorf("%v: %v", tc.ports, err)
		}
	}
}

// What was done is taken back, the last first, and what cannot be is said.
func TestUndoing(t *testing.T) {
	var order []string
	var u undoing
	for _, step := range []string{"lease", "link", "port"} {
		u.add(func(context.Context) error {
			order = append(order, step)
			if step == "link" {
				return errors.New("busy")
			}
			return nil
		})
	}
	if err := u.unless(nil); err != nil || order != nil {
		t.Fatalf("%v, %v", err, order)
	}
	err := u.unless(types.NewError(types.ErrTryAgainLater, "closed", ""))
	var e *types.Error
	if !errors.As(err, &e) || e.Code != types.ErrTryAgainLater || e.Msg != "closed" || e.Details != "not taken back: busy" || !slices.Equal(order, []string{"port", "link", "lease"}) {
		t.Errorf("%v, %v", err, order)
	}
}

func TestConflist(t *testing.T) {
	n := Network{Bridge: "br-weir", MTU: 1450, Socket: "/run/weir/shim.sock", Ranges: []Range{{Prefix: netip.MustParsePrefix("10.0.1.0/24")},
		{Prefix: netip.MustParsePrefix("fd00:1::/64"), Gateway: netip.MustParseAddr("fd00:1::ff")}}}
	const want = `{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "0.4.0",
    "1.0.0",
    "1.1.0"
  ],
  "name": "weir",
  "plugins": [
    {
      "bridge": "br-weir",
      "capabilities": {
        "ips": true,
        "mac": true
      },
      "ipam": {
        "ranges": [
          [
            {
              "subnet": "10.0.1.0/24"
            }
          ],
          [
            {
              "gateway": "fd00:1::ff",
              "subnet": "fd00:1::/64"
            }
          ]
        ],
        "type": "host-local"
      },
      "mtu": 1450,
      "socket": "/run/weir/shim.sock",
      "type": "weir-cni"
    }
  ]
}
`
	if d := cmp.Diff(want, string(n.Conflist())); d != "" {
		t.Errorf("conflist (-want +got):\n%s", d)
	}
	dir := t.TempDir()
	for i, want := range []bool{true, false, true} {
		if i == 2 {
			n.MTU = 1400
		}
		if changed, err := WriteConflist(dir, n); err != nil || changed != want {
			t.Errorf("write %d: %v, %v", i, changed, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left in the folder: %v", entries)
	}
	for range 2 {
		if err := RemoveConflist(dir); err != nil {
			t.Error(err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left in the folder: %v", entries)
	}
}

func TestInstallCopiesWhatDiffers(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if _, err := Install(from, to, "weir-cni", "host-local"); err == nil {
		t.Error("nothing to install is no error")
	}
	if err := os.WriteFile(filepath.Join(from, "weir-cni"), []byte("new"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "weir-cni"), []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{{"weir-cni"}, nil} {
		if got, err := Install(from, to, "weir-cni", "host-local"); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(to, "weir-cni")); err != nil || info.Mode().Perm() != 0o755 || info.Size() != 3 {
		t.Errorf("%v, %v", info, err)
	}
}
