package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// indexes is a sorted set of completion indexes. Its text is Kubernetes': "1,3-5,7".
type indexes []int32

func parseIndexes(s string) indexes {
	var out indexes
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseInt(first, 10, 32)
		if err != nil {
			continue
		}
		b := a
		if ranged {
			if b, err = strconv.ParseInt(last, 10, 32); err != nil {
				continue
			}
		}
		for i := a; i <= b; i++ {
			out = out.with(int32(i))
		}
	}
	return out
}

func (x indexes) with(i int32) indexes {
	at, found := slices.BinarySearch(x, i)
	if found {
		return x
	}
	return slices.Insert(x, at, i)
}

func (x indexes) has(i int32) bool {
	_, found := slices.BinarySearch(x, i)
	return found
}

func (x indexes) String() string {
	var parts []string
	for i := 0; i < len(x); {
		j := i
		for j+1 < len(x) && x[j+1] == x[j]+1 {
			j++
		}
		switch j - i {
		case 0:
			parts = append(parts, fmt.Sprint(x[i]))
		case 1:
			parts = append(parts, fmt.Sprint(x[i]), fmt.Sprint(x[j]))
		default:
			parts = append(parts, fmt.Sprintf("%d-%d", x[i], x[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}
