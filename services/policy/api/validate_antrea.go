package api

import (
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

func (f *findings) tier(o *antreav1beta1.Tier) {}

func (f *findings) antreaPolicy(annotations map[string]string, spec *antreav1beta1.PolicySpec) {
	f.enforcement(annotations)
}

func (f *findings) antreaGroup(spec *antreav1beta1.GroupSpec) {}
