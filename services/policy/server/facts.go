package server

import (
	"fmt"
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// Object is what there is to tell of an object to those who watch: a Pod, a
// Node or a Service for its addresses, or the version of a policy, tier or
// group. Both are nil where there is none.
type Object struct {
	Addressed api.Object
	Read      int64 // When that was read, in Unix nanoseconds. Zero: it is not kept.
	Version   *api.Version
	Pods      int // That a policy applies to.
}

// fact says whose the addresses of an object are; nil where it has none of its
// own. What a Pod on its Node's network sends and receives is the Node's.
func fact(o api.Object) *policyv1.ObjectChange {
	switch o := o.(type) {
	case *api.Pod:
		if o.HostNetwork || o.Finished || o.Node == "" || len(o.IPs) == 0 {
			return nil
		}
		return endpointChange(&policyv1.EndpointFact{Namespace: o.Namespace, Name: o.Name, Node: o.Node, Ips: wireAddresses(o.IPs), Workload: o.Workload})
	case *api.Node:
		ips := wireAddresses(o.Addresses, o.Gateways, o.Transport)
		if len(ips) == 0 {
			return nil
		}
		return endpointChange(&policyv1.EndpointFact{Name: o.Name, Ips: ips})
	case *api.Service:
		ips := wireAddresses(o.ClusterIPs, o.ExternalIPs)
		if len(ips) == 0 {
			return nil
		}
		return serviceChange(&policyv1.ServiceFact{Namespace: o.Namespace, Name: o.Name, Ips: ips})
	}
	return nil
}

func endpointChange(f *policyv1.EndpointFact) *policyv1.ObjectChange {
	return &policyv1.ObjectChange{Object: &policyv1.ObjectChange_Endpoint{Endpoint: f}}
}

func serviceChange(f *policyv1.ServiceFact) *policyv1.ObjectChange {
	return &policyv1.ObjectChange{Object: &policyv1.ObjectChange_Service{Service: f}}
}

// wireAddresses are addresses of several lists, each once.
func wireAddresses(lists ...[]netip.Addr) [][]byte {
	all := slices.Concat(lists...)
	out := make([][]byte, 0, len(all))
	for i, ip := range all {
		if !slices.Contains(all[:i], ip) {
			out = append(out, ip.AsSlice())
		}
	}
	return out
}

// versionChange says what an object is as it was written.
func versionChange(ref api.Ref, v *api.Version) (*policyv1.ObjectChange, error) {
	manifest, err := v.Manifest()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	apiVersion, kind := api.Written(ref.Kind)
	return &policyv1.ObjectChange{Object: &policyv1.ObjectChange_Version{Version: &policyv1.ObjectVersion{ApiVersion: apiVersion, Kind: kind,
		Namespace: ref.Namespace, Name: ref.Name, Uid: v.UID, Generation: v.Generation, Manager: v.Manager, User: v.User, Manifest: manifest}}}, nil
}

// goneChange says that an object is no more; last is what its version was.
func goneChange(ref api.Ref, last *api.Version) (*policyv1.ObjectChange, error) {
	var c *policyv1.ObjectChange
	switch ref.Kind {
	case api.KindPod, api.KindNode:
		c = endpointChange(&policyv1.EndpointFact{Namespace: ref.Namespace, Name: ref.Name})
	case api.KindService:
		c = serviceChange(&policyv1.ServiceFact{Namespace: ref.Namespace, Name: ref.Name})
	default:
		var err error
		if c, err = versionChange(ref, last); err != nil {
			return nil, err
		}
	}
	c.Removed = true
	return c, nil
}
