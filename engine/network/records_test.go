package network

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A record is never half written: whoever kills the daemon meanwhile leaves the one before.
func TestRecordsAreReplacedWhole(t *testing.T) {
	for _, durable := range []bool{false, true} {
		rec, err := openRecords(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := rec.put(kindEndpoint, "e", "old", durable); err != nil {
			t.Fatal(err)
		}
		before, err := os.Open(rec.path(kindEndpoint, "e"))
		if err != nil {
			t.Fatal(err)
		}
		defer before.Close()
		if err := rec.put(kindEndpoint, "e", "new", durable); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(before); err != nil || string(b) != `"old"` {
			t.Errorf("durable %v: the record was written in place: %q, %v", durable, b, err)
		}
		unfinished := rec.path(kindEndpoint, "e") + ".1"
		if err := os.WriteFile(unfinished, []byte(`"h`), 0o600); err != nil {
			t.Fatal(err)
		}
		if all, err := load[string](rec, kindEndpoint); err != nil || len(all) != 1 || all["e"] != "new" {
			t.Errorf("durable %v: loaded %v, %v; want the new one", durable, all, err)
		}
		if left, _ := filepath.Glob(filepath.Join(rec.dir, kindEndpoint, "*")); len(left) != 1 {
			t.Errorf("durable %v: left are %v, want the record alone", durable, left)
		}
	}
}
