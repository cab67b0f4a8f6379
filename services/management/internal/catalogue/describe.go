package catalogue

import "strings"

// noun is an entity in both languages, with its article.
type noun struct{ en, pt string }

var nouns = map[string]noun{
	"deal":         {"A deal", "Uma negociação"},
	"contact":      {"A contact", "Um contato"},
	"organization": {"An organization", "Uma empresa"},
	"task":         {"A task", "Uma tarefa"},
	"product":      {"A product", "Um produto"},
	"campaign":     {"A campaign", "Uma campanha"},
	"source":       {"A source", "Uma fonte"},
	"lost_reason":  {"A lost reason", "Um motivo de perda"},
	"lead":         {"A lead", "Um lead"},
	"proposal":     {"A proposal", "Uma proposta"},
}

// verbs are actions in both languages; the Portuguese participle lacks its ending, which follows the gender.
var verbs = map[string]noun{
	"created": {"was created.", "criad"},
	"updated": {"was changed.", "alterad"},
	"deleted": {"was deleted. The document has its id and little more.", "excluíd"},
}

// split returns the entity and the action in an event's name.
func split(name string) (entity, action string) {
	rest := strings.TrimPrefix(name, "crm_")
	for entity := range nouns {
		if action, ok := strings.CutPrefix(rest, entity+"_"); ok {
			return entity, action
		}
	}
	entity, action, _ = strings.Cut(rest, "_")
	return entity, action
}

func describe(name, entity, action string) Description {
	if name == "crm_lead_rating_changed" {
		return Description{
			"The rating of a lead changed. The same change raises crm_lead_updated too.",
			"A qualificação de um lead mudou. A mesma alteração também gera crm_lead_updated.",
		}
	}
	n, known := nouns[entity]
	v, common := verbs[action]
	if !known || !common {
		return Description{
			"An event of this installation: " + words(entity) + ", " + words(action) + ".",
			"Um evento desta instalação: " + words(entity) + ", " + words(action) + ".",
		}
	}
	ending := "o"
	if strings.HasPrefix(n.pt, "Uma ") {
		ending = "a"
	}
	d := Description{n.en + " " + v.en, n.pt + " foi " + v.pt + ending + "."}
	if action == "deleted" {
		d.PT += " O documento tem seu id e pouco mais."
	}
	return d
}

func words(name string) string { return strings.ReplaceAll(name, "_", " ") }
