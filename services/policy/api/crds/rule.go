package main

import "strings"

// Methods of HTTP that rules may name.
var httpMethods = []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

// policyRule is a rule of a policy, for one direction.
func policyRule(namespaced, egress bool) schema {
	f := fields{
		"action":        oneOf("What becomes of the traffic: Allow lets it through, Drop does not, Reject answers that it does not, and Pass leaves it to the Kubernetes NetworkPolicies. Deny is read as Drop, with a warning.", "Allow", "Drop", "Reject", "Pass", "Deny"),
		"ports":         list("Ports and transport protocols of the traffic; left out, all. Where protocols is there too, the traffic of either matches.", mostPorts, port()),
		"protocols":     list("Protocols of the traffic that have no ports: ICMP and IGMP.", mostProtocols, protocol(egress)),
		"l7Protocols":   list("What an Allow rule lets through of the traffic by its content, the rest being dropped. Weir does not look into connections: all that such a rule matches is dropped.", mostLayer7, layer7()),
		"name":          text("Name of the rule, by which it is reported: unlike those of the policy's other rules, at most 100 characters. One is made where it is left out.").length(0, nameLength),
		"enableLogging": truth("Whether the connections that the rule decides are logged; false where it is left out."),
		"logLabel": text("Text that the rule's log entries carry: at most 63 letters, digits, -, _ and ., of which a Node's own log shows 12.",
			must("self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$')", "write letters, digits, -, _ and ., the first and last a letter or digit")).length(0, 63),
		"appliedTo": appliedTo("What the rule applies to, all entries together; left out where the policy says it.", namespaced, true, egress),
	}
	peers := "from"
	if egress {
		peers = "to"
		f["to"] = list("Where the traffic goes, to any of the entries; left out, anywhere.", mostPeers, peer(namespaced, true))
		f["toServices"] = list("Services that the traffic goes to by their ClusterIP and ports, instead of to, ports and protocols.", mostServices, toService())
		f["from"] = refusedList("Refused: the peers of an egress rule are in to.", "from stands in an egress rule; write to")
	} else {
		f["from"] = list("Where the traffic comes from, any of the entries; left out, anywhere.", mostPeers, peer(namespaced, false))
		f["to"] = refusedList("Refused: the peers of an ingress rule are in from.", "to stands in an ingress rule; write from")
		f["toServices"] = refusedList("Refused: the traffic of an ingress rule has come to its Pod already.", "toServices stands in an ingress rule; write it in an egress rule, or write from")
	}
	return object("What becomes of some traffic. All its conditions must hold: peers, and ports or protocols.", f, ruleRules(peers, egress)...).requires("action")
}

// ruleRules are what holds between the fields of a rule.
func ruleRules(peers string, egress bool) []rule {
	without := func(lists ...string) string {
		var each []string
		for _, l := range lists {
			each = append(each, "("+empty("self."+l)+")")
		}
		return strings.Join(each, " && ")
	}
	noIGMP := "!has(self.protocols) || !self.protocols.exists(p, has(p.igmp)) || "
	noLayer7 := "(" + empty("self.l7Protocols") + ") || "
	rules := []rule{
		must(noIGMP+"!(self.action in ['Pass', 'Reject'])", "IGMP is multicast, for which Pass and Reject are not possible; write Allow or Drop"),
		must(noIGMP+"self.protocols.all(p, has(p.igmp))", "IGMP stands beside another protocol; write a rule for each"),
		must(noIGMP+"("+without(peers, "ports")+")", "IGMP has neither peers nor ports; remove "+peers+" and ports, or write a rule of its own for what they select"),
		must(noLayer7+"self.action == 'Allow'", "a rule with l7Protocols lets through what they say and drops the rest; write Allow"),
		must(noLayer7+"!has(self.ports) || self.ports.all(p, !has(p.protocol) || p.protocol == 'TCP')", "HTTP and TLS are carried by TCP; write TCP in ports, or remove l7Protocols"),
		must(noLayer7+"("+without("protocols")+")", "neither ICMP nor IGMP carries HTTP or TLS; write a rule of their own for protocols"),
	}
	if egress {
		noServices := "(" + empty("self.toServices") + ") || "
		rules = append(rules,
			must(noServices+"("+without("to", "ports", "protocols")+")", "toServices says address and ports by itself; remove to, ports and protocols, or write a rule for each"),
			must(noServices+"("+without("l7Protocols")+")", "toServices stands beside l7Protocols; write to instead, or remove one of the two"))
	} else {
		rules = append(rules, must("!has(self.appliedTo) || !self.appliedTo.exists(a, has(a.service)) || !has(self.from) || self.from.all(p, has(p.ipBlock))",
			"the clients of a Service are known by address alone; write ipBlock in from"))
	}
	return rules
}

// peer is an entry of from or to.
func peer(namespaced, egress bool) schema {
	s := object("Whom the traffic is exchanged with: Pods, Nodes, addresses or names, of one kind.", fields{
		"ipBlock":           block(addresses),
		"podSelector":       selector("Pods with these labels: of the policy's own Namespace, or of all where it has none, unless namespaceSelector or namespaces says of which."),
		"namespaceSelector": selector("Pods of the Namespaces with these labels, all of them where podSelector is left out."),
		"namespaces": object("Pods of Namespaces that are related to that of the Pod which the rule guards; each Pod has other peers then.", fields{
			"match": oneOf("Self, for the Namespace of the Pod that the rule guards.", "Self"),
			"sameLabels": list("Keys of labels for which the Namespaces have the same values. A Namespace with none of them is not guarded.", 0,
				text("Key of a label of Namespaces.").pattern(labelKey).length(1, keyLength)),
		}, must("has(self.match) != ("+filled("self.sameLabels")+")", "write either match: Self, or sameLabels with label keys")),
		"group":                  text("Name of a ClusterGroup or, in a NetworkPolicy, of a Group of its Namespace. Its Pods and blocks are the peers, and nobody while the group is not there."),
		"fqdn":                   text("Name of hosts, with * for any run of characters: *.example.com. It stands for the addresses that DNS told the Pods of a node.").pattern(`^[-0-9a-zA-Z.*]*$`),
		"serviceAccount":         reference(accounts, "service account"),
		"nodeSelector":           selector("Nodes with these labels, by all addresses of their hosts."),
		"scope":                  oneOf("Where the peers are: Cluster, which is this one and need not be written.", "Cluster"),
		"externalEntitySelector": refused(notSupported, beyond+"write ipBlock, or remove the entry"),
	},
		must(hasAny("podSelector", "namespaceSelector", "namespaces", "ipBlock", "group", "fqdn", "serviceAccount", "nodeSelector", "externalEntitySelector"),
			"the entry names no peer; write podSelector, namespaceSelector, namespaces, ipBlock, group, fqdn, serviceAccount or nodeSelector, or remove it"),
		must(alone(hasAny("podSelector", "namespaceSelector", "namespaces"), "has(self.ipBlock)", "has(self.group)", "has(self.fqdn)", "has(self.serviceAccount)", "has(self.nodeSelector)"),
			"ipBlock, group, fqdn, serviceAccount and nodeSelector stand alone; write an entry for each"),
		must("!has(self.namespaces) || !has(self.namespaceSelector)", "namespaces stands beside namespaceSelector; write one of the two"))
	if namespaced {
		s = s.but(fields{"namespaces": refused("Refused: a NetworkPolicy guards Pods of one Namespace, so that there is nothing to relate to.", "a NetworkPolicy is of one Namespace; write namespaceSelector, leave it out for the policy's own Namespace, or write a ClusterNetworkPolicy")})
	}
	if !egress {
		s = s.but(fields{"fqdn": text("Refused: clients are known by their addresses, and not by a name.", must("size(self) == 0", "a client is not known by its name; write ipBlock, or fqdn in an egress rule"))})
	}
	return s
}

// port is an entry of ports.
func port() schema {
	first := schema{XIntOrString: true, Description: "Port that the traffic goes to: a number from 1 to 65535, or a name that the containers which serve it give it; left out, all.",
		Minimum: new(1.0), Maximum: new(65535.0), MaxLength: new(int64(15)), Pattern: `^([a-z0-9]+-)*[a-z0-9]*[a-z][a-z0-9]*(-[a-z0-9]+)*$`}
	return object("Ports of one transport protocol. All that is written must hold.", fields{
		"protocol":      oneOf("Transport protocol of the traffic: TCP, UDP or SCTP; TCP where it is left out.", "TCP", "UDP", "SCTP"),
		"port":          first,
		"endPort":       integer("Last port of a range that begins with port, which is a number then.", 1, 65535),
		"sourcePort":    integer("Port that the traffic comes from, 1 to 65535; left out, any.", 1, 65535),
		"sourceEndPort": integer("Last port of a range that begins with sourcePort, and not below it.", 1, 65535),
	},
		must("!has(self.endPort) || (has(self.port) && type(self.port) == int)", "endPort stands without port, or with a named port; write port, the first of the range, as a number"),
		must("!has(self.endPort) || !has(self.port) || type(self.port) != int || self.port <= self.endPort", "endPort is below port; write the last port of the range"),
		must("!has(self.sourceEndPort) || has(self.sourcePort)", "sourceEndPort stands without sourcePort; write sourcePort, the first of the range"),
		must("!has(self.sourceEndPort) || !has(self.sourcePort) || self.sourcePort <= self.sourceEndPort", "sourceEndPort is below sourcePort; write the last port of the range"))
}

// protocol is an entry of protocols. Queries of IGMP are for ingress, its
// reports for egress.
func protocol(egress bool) schema {
	kind := must("self == 17", "write 0x11, a query, which Pods receive; reports (0x12, 0x16, 0x22) are for egress rules")
	to := must("self == '' || self == '224.0.0.1'", "a query can be matched for 224.0.0.1 only; write that, or leave it out")
	if egress {
		kind = must("self in [18, 22, 34]", "write 0x12, 0x16 or 0x22, the reports that Pods send; queries (0x11) are for ingress rules")
		to = must(`self == '' || self.matches('^(22[4-9]|23[0-9])([.](25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}$')`, "write an IPv4 multicast address, from 224.0.0.0 to 239.255.255.255, or leave it out for any")
	}
	igmpType := count("Type of the messages: 0x11 for queries in ingress; 0x12, 0x16 or 0x22 for reports in egress; left out, all.", "int32")
	igmpType.XValidations = []rule{kind}
	return object("A protocol that has no ports: either ICMP or IGMP.", fields{
		"icmp": object("Messages of ICMP, and of ICMPv6 where addresses are IPv6.", fields{
			"icmpType": integer("Type of the messages, 0 to 255, such as 8 for an echo request of IPv4 and 128 for one of IPv6; left out, all.", 0, 255),
			"icmpCode": integer("Code of the messages, 0 to 255, with icmpType alone; left out, all of the type.", 0, 255),
		}, must("!has(self.icmpCode) || has(self.icmpType)", "icmpCode stands without icmpType; write the type whose code it is")),
		"igmp": object("Messages of IGMP, by which Pods join and leave multicast groups; for Allow and Drop.", fields{
			"igmpType":     igmpType,
			"groupAddress": text("Multicast group that the messages are about, an IPv4 address; left out, all. A query names 224.0.0.1.", to).length(0, 15),
		}),
	}, must("has(self.icmp) != has(self.igmp)", "write either icmp or igmp, and an entry for each"))
}

// layer7 is an entry of l7Protocols.
func layer7() schema {
	return object("An application protocol: either HTTP or TLS.", fields{
		"http": object("Requests of HTTP without TLS. All that is written must hold.", fields{
			"host":   text("Host that the request names, with * at the beginning or end for any run of characters; left out, all."),
			"method": oneOf("Method of the request, such as GET; left out, all.", httpMethods...),
			"path":   text("Path of the request, with * at the beginning or end for any run of characters; left out, all."),
		}),
		"tls": object("Handshakes of TLS, which name a server.", fields{
			"sni": text("Server name that the client asks for; left out, all."),
		}),
	}, must("has(self.http) != has(self.tls)", "write either http or tls, and an entry for each"))
}

// toService is an entry of toServices.
func toService() schema {
	return reference("A Service that the traffic goes to, at any of its ports.", "Service").but(fields{"scope": oneOf("Where the Service is: Cluster, which is this one and need not be written.", "Cluster")})
}
