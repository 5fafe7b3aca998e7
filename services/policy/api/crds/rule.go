package main

import "strings"

// Methods of HTTP that rules may name.
var httpMethods = []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

// policyRule is a rule of a policy, for one direction.
func policyRule(namespaced, egress bool) schema {
	f := fields{
		"action":        oneOf("What becomes of the traffic; Deny is read as Drop.", "Allow", "Drop", "Reject", "Pass", "Deny"),
		"ports":         list("Ports and transport protocols of the traffic; left out, all.", mostPorts, port()),
		"protocols":     list("Protocols of the traffic that have no ports.", mostProtocols, protocol(egress)),
		"l7Protocols":   list("What an Allow rule lets through of the traffic, which is looked into; the rest of it is dropped.", mostLayer7, layer7()),
		"name":          text("Name of the rule, other than those of the policy's other rules; one is made where it is left out.").length(0, nameLength),
		"enableLogging": truth("Whether the traffic that the rule decides is logged."),
		"logLabel": text("Text that the rule's log entries carry.",
			must("self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$')", "write letters, digits, -, _ and ., the first and last a letter or digit")).length(0, 63),
		"appliedTo": appliedTo("What the rule applies to; left out where the policy says it.", namespaced, true, egress),
	}
	peers := "from"
	if egress {
		peers = "to"
		f["to"] = list("Where the traffic goes; left out, anywhere.", mostPeers, peer(namespaced, true))
		f["toServices"] = list("Services that the traffic goes to.", mostServices, toService())
		f["from"] = refusedList("Not possible in an egress rule.", "from stands in an egress rule; write to")
	} else {
		f["from"] = list("Where the traffic comes from; left out, anywhere.", mostPeers, peer(namespaced, false))
		f["to"] = refusedList("Not possible in an ingress rule.", "to stands in an ingress rule; write from")
		f["toServices"] = refusedList("Not possible in an ingress rule.", "toServices stands in an ingress rule; write it in an egress rule, or write from")
	}
	return object("One rule.", f, ruleRules(peers, egress)...).requires("action")
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
	s := object("One kind of peer.", fields{
		"ipBlock":           block("Addresses of one prefix."),
		"podSelector":       selector("Pods with these labels, of the policy's Namespace where it has one and nothing chooses others."),
		"namespaceSelector": selector("Pods of the Namespaces with these labels."),
		"namespaces": object("Pods of Namespaces that are related to that of the Pod which the rule guards.", fields{
			"match": oneOf("Self for the Pod's own Namespace.", "Self"),
			"sameLabels": list("Keys of labels that the Namespaces have in common.", 0,
				text("A label's key.").pattern(labelKey).length(1, keyLength)),
		}, must("has(self.match) != ("+filled("self.sameLabels")+")", "write either match: Self, or sameLabels with label keys")),
		"group":                  text("Name of a group whose members are meant."),
		"fqdn":                   text("Name of hosts, with * for any run of characters.").pattern(`^[-0-9a-zA-Z.*]*$`),
		"serviceAccount":         reference("Pods that run as this service account.", "service account"),
		"nodeSelector":           selector("Nodes with these labels."),
		"scope":                  oneOf("Where the peers are: in this cluster.", "Cluster"),
		"externalEntitySelector": refused("Not supported: what it selects is beyond the cluster.", beyond+"write ipBlock, or remove the entry"),
	},
		must(hasAny("podSelector", "namespaceSelector", "namespaces", "ipBlock", "group", "fqdn", "serviceAccount", "nodeSelector", "externalEntitySelector"),
			"the entry names no peer; write podSelector, namespaceSelector, namespaces, ipBlock, group, fqdn, serviceAccount or nodeSelector, or remove it"),
		must(alone(hasAny("podSelector", "namespaceSelector", "namespaces"), "has(self.ipBlock)", "has(self.group)", "has(self.fqdn)", "has(self.serviceAccount)", "has(self.nodeSelector)"),
			"ipBlock, group, fqdn, serviceAccount and nodeSelector stand alone; write an entry for each"),
		must("!has(self.namespaces) || !has(self.namespaceSelector)", "namespaces stands beside namespaceSelector; write one of the two"))
	if namespaced {
		s = s.but(fields{"namespaces": refused("Not possible in a NetworkPolicy.", "a NetworkPolicy is of one Namespace; write namespaceSelector, leave it out for the policy's own Namespace, or write a ClusterNetworkPolicy")})
	}
	if !egress {
		s = s.but(fields{"fqdn": text("Not possible in an ingress rule.", must("size(self) == 0", "a client is not known by its name; write ipBlock, or fqdn in an egress rule"))})
	}
	return s
}

// port is an entry of ports.
func port() schema {
	first := schema{XIntOrString: true, Description: "Port that the traffic goes to: a number, or a name that its containers give it.",
		Minimum: new(1.0), Maximum: new(65535.0), MaxLength: new(int64(15)), Pattern: `^([a-z0-9]+-)*[a-z0-9]*[a-z][a-z0-9]*(-[a-z0-9]+)*$`}
	return object("Ports of one protocol.", fields{
		"protocol":      oneOf("Transport protocol; TCP where it is left out.", "TCP", "UDP", "SCTP"),
		"port":          first,
		"endPort":       integer("Last port of a range that begins with port.", 1, 65535),
		"sourcePort":    integer("Port that the traffic comes from.", 1, 65535),
		"sourceEndPort": integer("Last port of a range that begins with sourcePort.", 1, 65535),
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
	return object("One protocol.", fields{
		"icmp": object("ICMP, and ICMPv6 for IPv6.", fields{
			"icmpType": integer("Type of the messages; left out, all.", 0, 255),
			"icmpCode": integer("Code of the messages, with a type alone; left out, all.", 0, 255),
		}, must("!has(self.icmpCode) || has(self.icmpType)", "icmpCode stands without icmpType; write the type whose code it is")),
		"igmp": object("IGMP.", fields{
			"igmpType":     igmpType,
			"groupAddress": text("Multicast group that the messages are about; left out, all.", to).length(0, 15),
		}),
	}, must("has(self.icmp) != has(self.igmp)", "write either icmp or igmp, and an entry for each"))
}

// layer7 is an entry of l7Protocols.
func layer7() schema {
	return object("One protocol.", fields{
		"http": object("Requests of HTTP.", fields{
			"host":   text("Host that the request names, with * at the beginning or end for any run of characters; left out, all."),
			"method": oneOf("Method of the request; left out, all.", httpMethods...),
			"path":   text("Path of the request, with * at the beginning or end for any run of characters; left out, all."),
		}),
		"tls": object("Handshakes of TLS.", fields{
			"sni": text("Server name that the client asks for; left out, all."),
		}),
	}, must("has(self.http) != has(self.tls)", "write either http or tls, and an entry for each"))
}

// toService is an entry of toServices.
func toService() schema {
	return reference("One Service.", "Service").but(fields{"scope": oneOf("Where the Service is: in this cluster.", "Cluster")})
}
