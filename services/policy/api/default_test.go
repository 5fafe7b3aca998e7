package api

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestDefault(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"tier and names", acnp("ingress: [{action: Drop}, {action: Deny, name: own}], egress: [{action: Allow, ports: [{port: 80}]}]"),
			`"egress":[{"action":"Allow","name":"egress-allow-`},
		{"the tier", bareANNP("priority: 1"), `"spec":{"priority":1,"tier":"application"}`},
		{"a tier that is there, under its former name", acnp("tier: SecurityOps"), `"tier":"SecurityOps"`},
		{"a name that is there", acnp("ingress: [{action: Drop, name: own}]"), `"ingress":[{"action":"Drop","name":"own"}]`},
		{"numbers and fields that are not known stay", bareANNP("priority: 5.50, more: 12345678901234567890"), `"more":12345678901234567890`},
		{"no spec", "apiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\n", `{"apiVersion":"crd.antrea.io/v1beta1","kind":"ClusterNetworkPolicy"}`},
		{"another kind", aTier("a", 1), `"spec":{"priority":1}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Default([]byte(test.text))
			if err != nil || !strings.Contains(string(got), test.want) {
				t.Errorf("got %s, %v, want %s", got, err, test.want)
			}
			again, err := Default(got)
			if err != nil || string(again) != string(got) {
				t.Errorf("once more: %s, %v", again, err)
			}
		})
	}
	for _, bad := range []string{"a: [", acnp("tier: [a]")} {
		if got, err := Default([]byte(bad)); err == nil {
			t.Errorf("%q gives %s", bad, got)
		}
	}
}

// A defaulted policy is the one that is enforced without it.
func TestDefaultSaysWhatDecodingMeans(t *testing.T) {
	text := acnp("ingress: [{action: Drop, from: [{podSelector: {}}]}, {action: Reject, enableLogging: true}], egress: [{action: Pass, ports: [{port: web, protocol: UDP}]}]")
	named, err := Default([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var objects []string
	for _, t2 := range [][]byte{[]byte(text), named} {
		m, err := Decode(t2)
		if err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(m.Objects[0].Object)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, string(out))
	}
	if objects[0] != objects[1] {
		t.Errorf("without defaults %s, with %s", objects[0], objects[1])
	}
}

func TestKindOf(t *testing.T) {
	for written, want := range map[string]Kind{
		"v1 Pod": KindPod, "networking.k8s.io/v1 NetworkPolicy": KindNetworkPolicy, "crd.antrea.io/v1beta1 NetworkPolicy": KindAntreaNetworkPolicy, "crd.antrea.io/v1beta1 Tier": KindTier,
		"crd.antrea.io/v1beta1 ClusterNetworkPolicy": KindAntreaClusterNetworkPolicy, "policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy": KindClusterNetworkPolicy,
		"apps/v1 Pod": KindUnknown, "crd.antrea.io/v1beta1 AntreaNetworkPolicy": KindUnknown,
	} {
		version, kind, _ := strings.Cut(written, " ")
		if got := KindOf(version, kind); got != want {
			t.Errorf("%s is %v, want %v", written, got, want)
		}
	}
}
