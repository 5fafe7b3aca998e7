package hostfw

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// standing is what the table has of policies.
type standing struct {
	rules  []string // In order, less what they have counted; with the chains' settings.
	sets   []string // Names, sorted.
	chains []string // Names.
}

func (s *standing) isEmpty() bool { return len(s.chains)+len(s.sets) == 0 }

// readPolicies reads what there is of ours. It asks the kernel: the text that nft
// prints of a rule would need it to be run, and knftables leaves it out.
func readPolicies() (*standing, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	defer conn.CloseLasting()
	s, err := readTable(conn)
	if err != nil {
		return nil, fmt.Errorf("nftables: read policies: %w", err)
	}
	return s, nil
}

func readTable(conn *nftables.Conn) (*standing, error) {
	s := &standing{}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table })
	if at < 0 {
		return s, nil
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if c.Table.Name != table || !slices.Contains(policyChains, c.Name) {
			continue
		}
		if err := s.readChain(conn, tables[at], c); err != nil {
			return nil, err
		}
	}
	sets, err := conn.GetSets(tables[at])
	if err != nil {
		return nil, err
	}
	for _, set := range sets {
		if strings.HasPrefix(set.Name, setPrefix) {
			s.sets = append(s.sets, set.Name)
		}
	}
	slices.Sort(s.sets)
	return s, nil
}

func (s *standing) readChain(conn *nftables.Conn, in *nftables.Table, c *nftables.Chain) error {
	settings := "chain " + c.Name
	if c.Hooknum != nil && c.Priority != nil && c.Policy != nil {
		settings += fmt.Sprintf(" %d %d %d", *c.Hooknum, *c.Priority, *c.Policy)
	}
	s.rules, s.chains = append(s.rules, settings), append(s.chains, c.Name)
	rules, err := conn.GetRules(in, c)
	if err != nil {
		return err
	}
	for _, r := range rules {
		text := fmt.Sprintf("%s %d", c.Name, r.Handle)
		for _, e := range r.Exprs {
			if _, counts := e.(*expr.Counter); counts {
				continue
			}
			wire, err := expr.Marshal(byte(nftables.TableFamilyINet), e)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %T%x", e, wire)
		}
		s.rules = append(s.rules, text)
	}
	return nil
}
