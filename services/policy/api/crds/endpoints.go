package main

// nodeEndpoints is the schema of our own kind; see package weirv1alpha1.
func nodeEndpoints() kind {
	return kind{
		group: "weir.dev", version: "v1alpha1", names: names("NodeEndpoints", "nodeendpoints", "nodeendpoints", "nep"),
		about: "NodeEndpoints are the addresses that a node's shim reports for the Pods whose ports it has, known before the kubelet has written them into the Pods' status; the object is named after the Node and written by the policy service, for all its replicas.",
		fields: fields{"endpoints": listMap("The Pods of the node that have a port on its bridge.", object("A Pod, and the addresses that it has.", fields{
			"namespace": text("Namespace that the Pod is in.").length(1, 63),
			"name":      text("Name of the Pod in its Namespace.").length(1, 253),
			"uid":       text("UID of the Pod, where the port says it: tells it from an earlier Pod of the same name."),
			"ips":       list("Addresses of the Pod, IPv4 or IPv6, as its port has them.", 0, text("An address, such as 10.9.8.7 or 2001:db8::7.")),
		}), "namespace", "name")},
	}
}
