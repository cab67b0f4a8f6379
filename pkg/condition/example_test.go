package condition_test

import (
	"fmt"

	"gancho/pkg/condition"
)

// All conditions must hold; the first that does not is named.
func ExampleSet_Failing() {
	var conditions []condition.Condition
	for _, line := range []string{"document.rating gte 4", "document.deal_stage.id in won,lost"} {
		c, err := condition.Parse(line)
		if err != nil {
			panic(err)
		}
		conditions = append(conditions, c)
	}
	set, problems := condition.Compile(conditions)
	if len(problems) > 0 {
		panic(problems)
	}
	for _, body := range []string{
		`{"document":{"rating":5,"deal_stage":{"id":"won"}}}`,
		`{"document":{"rating":3,"deal_stage":{"id":"won"}}}`,
		`{"document":{"rating":5}}`,
	} {
		fmt.Println(set.Failing(condition.NewEvent([]byte(body), nil, "")))
	}
	// Output:
	// -1
	// 0
	// 1
}
