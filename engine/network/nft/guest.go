package nft

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// A rule of ours in a chain of somebody else is a guest there: it carries a mark, which the nft program shows as a
// comment, and by which it is found again and taken out.

// Invite puts rules at the beginning of a foreign chain, unless as many with this mark are there.
func (c *Conn) Invite(chain *nftables.Chain, mark string, rules ...Rule) error {
	there, err := c.guests(chain, mark)
	if err != nil || len(there) == len(rules) {
		return err
	}
	return c.Do(func(b *Batch) {
		for _, old := range there {
			b.check(c.c.DelRule(old))
		}
		for _, r := range rules {
			c.c.InsertRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: r, UserData: userdata.AppendString(nil, userdata.TypeComment, mark)})
		}
	})
}

// Uninvite takes the rules with a mark out of a foreign chain.
func (c *Conn) Uninvite(chain *nftables.Chain, mark string) error {
	there, err := c.guests(chain, mark)
	if err != nil || len(there) == 0 {
		return err
	}
	return c.Do(func(b *Batch) {
		for _, old := range there {
			b.check(c.c.DelRule(old))
		}
	})
}

func (c *Conn) guests(chain *nftables.Chain, mark string) ([]*nftables.Rule, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, err := c.c.GetRules(chain.Table, chain)
	if err != nil {
		return nil, fmt.Errorf("list the rules of nftables chain %s of table %s: %w", chain.Name, chain.Table.Name, err)
	}
	var found []*nftables.Rule
	for _, r := range all {
		if comment, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && comment == mark {
			r.Table, r.Chain = chain.Table, chain
			found = append(found, r)
		}
	}
	return found, nil
}
