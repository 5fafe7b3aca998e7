package main

// nodeEndpoints is the schema of our own kind; see package weirv1alpha1.
func nodeEndpoints() kind {
	return kind{
		group: "weir.dev", version: "v1alpha1", names: names("NodeEndpoints", "nodeendpoints", "nodeendpoints", "nep"),
		about: "NodeEndpoints are the addresses that a node's shim reports for the Pods whose ports it has, known before the kubelet has written them into the Pods' status; the object is named after the Node and written by the policy service, for all its replicas.",
		fields: fields{"endpoints": listMap("The Pods of the node that have a port.", object("One Pod.", fields{
			"namespace": text("Namespace of the Pod.").length(1, 63),
			"name":      text("Name of the Pod.").length(1, 253),
			"uid":       text("UID of the Pod, where the port says it: tells it from an earlier Pod of the same name."),
			"ips":       list("Addresses of the Pod, IPv4 or IPv6.", 0, text("An address.")),
		}), "namespace", "name")},
	}
}
