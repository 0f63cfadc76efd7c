package nft_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/nftables"

	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/engine/network/nft"
)

func TestMain(m *testing.M) { networktest.Main(m) }

const table = "slipway-model"

// listed is the kernel's table without white space.
func listed(t testing.TB) string {
	return strings.Join(strings.Fields(networktest.Sh(t, "nft list table ip "+table)), " ")
}

func newModel(t testing.TB) (*nft.Model, *nftables.Set) {
	networktest.NeedRoot(t)
	conn, err := nft.Dial(0)
	networktest.Check(t, err)
	m := nft.NewModel(conn, table)
	t.Cleanup(func() {
		networktest.Check(t, m.Remove())
		networktest.Check(t, conn.Close())
	})
	ports := m.Set(nftables.Set{Name: "ports", IsMap: true, KeyType: nft.Service, DataType: nft.Verdict})
	m.Chain("start", nil, nft.Vmap(ports, nft.KeyDport()))
	return m, ports
}

func TestModelSendsDifferences(t *testing.T) {
	m, ports := newModel(t)
	commit := func(what, want, unwanted string) {
		t.Helper()
		networktest.Check(t, m.Commit())
		if got := listed(t); !strings.Contains(got, want) || unwanted != "" && strings.Contains(got, unwanted) {
			t.Errorf("%s: the kernel has %q; want %q and not %q", what, got, want, unwanted)
		}
	}
	m.Chain("a", nil, nft.Accept())
	m.Put(ports, nft.GotoElement(nft.PortBytes(80), "a"))
	commit("first commit", "elements = { 80 : goto a }", "")

	m.Chain("b", nil, nft.Drop())
	m.Put(ports, nft.GotoElement(nft.PortBytes(80), "b"))
	m.DropChain("a")
	commit("another chain for the same key", "elements = { 80 : goto b }", "chain a")

	m.Chain("b", nil, nft.Accept())
	commit("other rules", "chain b { accept }", "drop")
	m.Chain("b", nil, nft.Accept())
	m.Put(ports, nft.GotoElement(nft.PortBytes(81), "b"))
	commit("one more element", "81 : goto b", "")
	m.Delete(ports, nft.PortBytes(80))
	m.Delete(ports, nft.PortBytes(80))
	commit("an element less", "elements = { 81 : goto b }", "80")

	networktest.Sh(t, "nft delete element ip "+table+" ports '{ 81 }'")
	m.Delete(ports, nft.PortBytes(81))
	m.Put(ports, nft.GotoElement(nft.PortBytes(82), "b"))
	commit("after somebody else's change", "elements = { 82 : goto b }", "81")
}

// Thousands of commands in one transaction: their acknowledgements fill a socket.
func TestModelOfManyChains(t *testing.T) {
	m, ports := newModel(t)
	for i := range 3000 {
		chain := fmt.Sprintf("chain-%d", i)
		set := m.Set(nftables.Set{Name: "set-" + chain, KeyType: nft.Addr})
		m.Chain(chain, nil, nft.If(nft.In(set, nft.KeySaddr()), nft.Accept()))
		m.Put(ports, nft.GotoElement(nft.PortBytes(uint16(i)), chain))
	}
	networktest.Check(t, m.Commit())
	for i := range 3000 {
		m.Delete(ports, nft.PortBytes(uint16(i)))
		m.DropChain(fmt.Sprintf("chain-%d", i))
		m.DropSet(fmt.Sprintf("set-chain-%d", i))
	}
	networktest.Check(t, m.Commit())
	if got := listed(t); strings.Contains(got, "chain-") {
		t.Errorf("left after all was removed: %.200s", got)
	}
}
