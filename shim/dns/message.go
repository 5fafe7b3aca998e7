package dns

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Question is what a query asks.
type Question struct {
	Name string // Lower case, without a full stop at the end.
	Type uint16 // 1 for addresses of IPv4, 28 for those of IPv6; others say nothing of addresses.
}

// Record is an address of a name.
type Record struct {
	Addr netip.Addr
	TTL  time.Duration // The least of the aliases on the way to it.
}

// Heard is what an answer says of the name that was asked for.
type Heard struct {
	Name    string
	Records []Record // None: the name has no address of the type.
}

var (
	errQuery    = errors.New("not a query for one name")
	errResponse = errors.New("not an answer to one question")
)

// readQuery reads a query (RFC 1035, 4.1).
func readQuery(b []byte) (id uint16, q Question, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return 0, Question{}, err
	}
	if h.Response || h.OpCode != 0 {
		return 0, Question{}, errQuery
	}
	q, err = question(&p)
	return h.ID, q, err
}

func question(p *dnsmessage.Parser) (Question, error) {
	list, err := p.AllQuestions()
	if err != nil {
		return Question{}, err
	}
	if len(list) != 1 || list[0].Class != dnsmessage.ClassINET {
		return Question{}, errQuery
	}
	return Question{clean(list[0].Name.String()), uint16(list[0].Type)}, nil
}

// readAnswer reads an answer: the addresses at the end of the aliases that lead
// from the name that was asked for. What else is in it does not count.
func readAnswer(b []byte) (id uint16, q Question, records []Record, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return 0, Question{}, nil, err
	}
	if !h.Response || h.OpCode != 0 {
		return 0, Question{}, nil, errResponse
	}
	if q, err = question(&p); err != nil {
		return 0, Question{}, nil, err
	}
	if h.RCode != dnsmessage.RCodeSuccess {
		return h.ID, q, nil, nil
	}
	type alias struct {
		to  string
		ttl time.Duration
	}
	aliases, addrs := make(map[string]alias), make(map[string][]Record)
	for {
		rh, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil {
			return 0, Question{}, nil, err
		}
		name, ttl := clean(rh.Name.String()), time.Duration(rh.TTL)*time.Second
		switch {
		case rh.Class == dnsmessage.ClassINET && rh.Type == dnsmessage.TypeCNAME:
			r, err := p.CNAMEResource()
			if err != nil {
				return 0, Question{}, nil, err
			}
			aliases[name] = alias{clean(r.CNAME.String()), ttl}
		case rh.Class == dnsmessage.ClassINET && rh.Type == dnsmessage.TypeA:
			r, err := p.AResource()
			if err != nil {
				return 0, Question{}, nil, err
			}
			addrs[name] = append(addrs[name], Record{netip.AddrFrom4(r.A), ttl})
		case rh.Class == dnsmessage.ClassINET && rh.Type == dnsmessage.TypeAAAA:
			r, err := p.AAAAResource()
			if err != nil {
				return 0, Question{}, nil, err
			}
			addrs[name] = append(addrs[name], Record{netip.AddrFrom16(r.AAAA), ttl})
		default:
			if err := p.SkipAnswer(); err != nil {
				return 0, Question{}, nil, err
			}
		}
	}
	at, least := q.Name, time.Duration(1<<62)
	for range len(aliases) + 1 { // Aliases may lead in a circle.
		for _, r := range addrs[at] {
			records = append(records, Record{r.Addr, min(r.TTL, least)})
		}
		a, is := aliases[at]
		if !is || len(records) > 0 {
			break
		}
		at, least = a.to, min(least, a.ttl)
	}
	return h.ID, q, records, nil
}

func clean(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// Matches says whether a name as a policy writes it, in which * stands for any run
// of characters, full stops too, is a host's. Both are in lower case, without a
// full stop at the end.
func Matches(pattern, name string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == name
	}
	name, is := strings.CutPrefix(name, first)
	if !is {
		return false
	}
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(name, part)
		}
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name, rest = name[i+len(part):], after
	}
}
