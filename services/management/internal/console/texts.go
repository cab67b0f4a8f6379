package console

import (
	"fmt"
	"html/template"

	lang "gancho/services/management/internal/language"
)

// text is one text in every language. {name} is a place for an argument.
type text struct{ en, pt string }

func (t text) in(l language) string {
	return lang.Text{English: t.en, Portuguese: t.pt}.In(lang.Language(l))
}

// known reports whether the catalogue has a key.
func known(key string) bool {
	_, ok := catalogue()[key]
	return ok
}

// text returns the text of a key, with the arguments (name, value, ...) as they are. A key that does not
// exist is a mistake of ours.
func (l language) text(key string, args ...any) string {
	return lang.Fill(l.template(key), args, func(v any) string { return fmt.Sprint(v) })
}

// html returns the text of a key as HTML. Arguments are escaped unless they are HTML already.
func (l language) html(key string, args ...any) template.HTML {
	return template.HTML(lang.Fill(template.HTMLEscapeString(l.template(key)), args, func(v any) string { //nolint:gosec // escaped here
		if h, ok := v.(template.HTML); ok {
			return string(h)
		}
		return template.HTMLEscapeString(fmt.Sprint(v))
	}))
}

// count is html for a text that depends on a number, with the keys <key>.one and <key>.other.
func (l language) count(key string, n any) (template.HTML, error) {
	digits, err := l.number(n)
	if err != nil {
		return "", err
	}
	if digits == "1" {
		return l.html(key+".one", "n", digits), nil
	}
	return l.html(key+".other", "n", digits), nil
}

func (l language) template(key string) string {
	t, ok := catalogue()[key]
	if !ok {
		panic(fmt.Sprintf("the catalogue of texts has no %q", key))
	}
	return t.in(l)
}

// catalogue are all texts of the console, by key. The map is shared: it must not be changed.
func catalogue() map[string]text { return texts }

//nolint:gochecknoglobals // it is never written
var texts = map[string]text{
	"nav.skip":           {"Skip to content", "Ir para o conteúdo"},
	"nav.main":           {"Main", "Principal"},
	"nav.crumbs":         {"Where you are", "Onde você está"},
	"nav.webhooks":       {"Webhooks", "Webhooks"},
	"nav.failures":       {"Failures", "Falhas"},
	"nav.tail":           {"Live", "Ao vivo"},
	"nav.account":        {"Account", "Conta"},
	"nav.change_account": {"change account", "trocar de conta"},
	"nav.read_only":      {"Read only", "Somente leitura"},
	"nav.language":       {"Language", "Idioma"},
	"nav.sign_out":       {"Sign out", "Sair"},

	"sign_in.title":          {"Sign in", "Entrar"},
	"sign_in.about":          {"Use an API token of your account. A token that may only read shows everything and changes nothing.", "Use um token de API da sua conta. Um token somente de leitura mostra tudo e não altera nada."},
	"sign_in.token":          {"API token", "Token de API"},
	"sign_in.button":         {"Sign in", "Entrar"},
	"sign_in.privacy":        {"The token is kept encrypted in a cookie of this browser, for 8 hours at most.", "O token fica criptografado em um cookie deste navegador, por no máximo 8 horas."},
	"sign_in.bad_token":      {"This token is unknown or has expired.", "Este token é desconhecido ou expirou."},
	"sign_in.token_too_long": {"This token is too long for a session; use an opaque token.", "Este token é longo demais para uma sessão; use um token opaco."},
	"sign_in.locked_out":     {"Too many bad tokens came from your address. Try again in {wait} s.", "Muitos tokens inválidos vieram do seu endereço. Tente de novo em {wait} s."},
	"sign_in.plain_http":     {"This page was opened over plain HTTP, where others could read your session. Open it over HTTPS, or set CONSOLE_PLAIN_HTTP=true to accept that.", "Esta página foi aberta por HTTP sem criptografia, e outros poderiam ler sua sessão. Abra por HTTPS, ou defina CONSOLE_PLAIN_HTTP=true para aceitar isso."},

	"account.title":  {"Choose an account", "Escolha uma conta"},
	"account.about":  {"Your token may act for every account. Which one do you want to see?", "Seu token pode agir por todas as contas. Qual delas você quer ver?"},
	"account.label":  {"Account id", "Id da conta"},
	"account.button": {"Open", "Abrir"},
	"account.known":  {"Accounts with webhooks", "Contas com webhooks"},
	"account.bad":    {"An account id has 1 to 64 characters of A-Z a-z 0-9 _ -.", "Um id de conta tem de 1 a 64 caracteres entre A-Z a-z 0-9 _ -."},

	"error.not_found":   {"Not found", "Não encontrado"},
	"error.forbidden":   {"Not allowed", "Não permitido"},
	"error.conflict":    {"Not possible now", "Não é possível agora"},
	"error.too_many":    {"Too many requests", "Muitas requisições"},
	"error.unavailable": {"Not available at the moment", "Indisponível no momento"},
	"error.other":       {"Something went wrong", "Algo deu errado"},
	"error.back":        {"Back to the webhooks", "Voltar aos webhooks"},

	"live.offline": {"The newest state cannot be read; trying again.", "Não foi possível ler o estado mais recente; tentando de novo."},

	"state.active":             {"Active", "Ativo"},
	"state.suspended":          {"Suspended", "Suspenso"},
	"state.disabled":           {"Disabled", "Desativado"},
	"state.pending":            {"Pending", "Pendente"},
	"state.retrying":           {"Retrying", "Tentando de novo"},
	"state.parked":             {"Parked", "Em espera"},
	"state.delivered":          {"Delivered", "Entregue"},
	"state.permanently_failed": {"Permanently failed", "Falha permanente"},
	"state.cancelled":          {"Cancelled", "Cancelada"},
	"outcome.delivered":        {"Delivered", "Entregue"},
	"outcome.failed":           {"Failed", "Falhou"},

	"reason.timeout":                 {"Timeout", "Tempo esgotado"},
	"reason.dns":                     {"Name not found (DNS)", "Nome não encontrado (DNS)"},
	"reason.connect":                 {"No connection", "Sem conexão"},
	"reason.tls":                     {"TLS or certificate", "TLS ou certificado"},
	"reason.redirect":                {"Redirect", "Redirecionamento"},
	"reason.status_1xx":              {"Status 1xx", "Status 1xx"},
	"reason.status_4xx":              {"Status 4xx", "Status 4xx"},
	"reason.status_5xx":              {"Status 5xx", "Status 5xx"},
	"reason.rate_limited":            {"Rate limited", "Limite de requisições"},
	"reason.blocked_address":         {"Blocked address", "Endereço bloqueado"},
	"reason.bad_response":            {"Bad response", "Resposta inválida"},
	"reason.header_limit":            {"Headers too large", "Cabeçalhos grandes demais"},
	"reason.internal_error":          {"Fault in Gancho", "Falha no Gancho"},
	"reason.expired_while_suspended": {"Expired while suspended", "Expirou durante a suspensão"},
	"reason.suspended":               {"URL suspended", "URL suspensa"},
	"reason.disabled":                {"Webhook disabled", "Webhook desativado"},
	"reason.saturated":               {"URL at its limit", "URL no limite"},

	"col.state":    {"State", "Estado"},
	"col.event":    {"Event", "Evento"},
	"col.created":  {"Created", "Criada"},
	"col.attempts": {"Attempts", "Tentativas"},
	"col.attempt":  {"Attempt", "Tentativa"},
	"col.result":   {"Last result", "Último resultado"},
	"col.answer":   {"Result", "Resultado"},
	"col.next":     {"Next attempt", "Próxima tentativa"},
	"col.webhook":  {"Webhook", "Webhook"},
	"col.reason":   {"Reason", "Motivo"},
	"col.failed":   {"Failed", "Falhou"},
	"col.outcome":  {"Outcome", "Desfecho"},
	"col.time":     {"Time", "Hora"},

	"list.partial": {"Some of the past is still being read and may be missing here.", "Parte do passado ainda está sendo lida e pode faltar aqui."},
	"list.away":    {"Lists of notifications are away at the moment, because Redis does not answer. Deliveries go on.", "As listas de notificações estão indisponíveis no momento, porque o Redis não responde. As entregas continuam."},

	"pager.label":  {"Pages", "Páginas"},
	"pager.before": {"Previous", "Anterior"},
	"pager.after":  {"Next", "Próxima"},
	"pager.newest": {"Newest", "Mais recentes"},
	"pager.older":  {"Older", "Mais antigas"},
	"pager.of":     {"Page {page} of {pages}", "Página {page} de {pages}"},

	"span.24h":   {"last 24 hours", "últimas 24 horas"},
	"span.6h":    {"last 6 hours", "últimas 6 horas"},
	"span.2h":    {"last 2 hours", "últimas 2 horas"},
	"span.24min": {"last 24 minutes", "últimos 24 minutos"},
	"span.4min":  {"last 4 minutes", "últimos 4 minutos"},
	"span.48s":   {"last 48 seconds", "últimos 48 segundos"},

	"chart.label":     {"Notifications, {span}: {delivered} delivered, {failed} failed, {open} open", "Notificações, {span}: {delivered} entregues, {failed} com falha, {open} em aberto"},
	"chart.bar":       {"{from} to {to}: {delivered} delivered, {failed} failed, {open} open", "{from} a {to}: {delivered} entregues, {failed} com falha, {open} em aberto"},
	"chart.now":       {"now", "agora"},
	"chart.delivered": {"Delivered", "Entregues"},
	"chart.open":      {"Open", "Em aberto"},
	"chart.failed":    {"Failed", "Com falha"},

	"health.last":            {"Last success", "Último sucesso"},
	"health.none_known":      {"none seen", "nenhum visto"},
	"health.failures":        {"Failures", "Falhas"},
	"health.of":              {"of {total}", "de {total}"},
	"health.attempts_failed": {"Failed attempts", "Tentativas com falha"},
	"health.suspended":       {"Suspended", "Suspenso"},
	"health.by_hand":         {"by hand", "manualmente"},
	"health.failing":         {"Failing", "Falhando"},
	"health.some":            {"Some failures", "Algumas falhas"},

	"webhooks.title":         {"Webhooks", "Webhooks"},
	"webhooks.count.one":     {"{n} webhook", "{n} webhook"},
	"webhooks.count.other":   {"{n} webhooks", "{n} webhooks"},
	"webhooks.found.one":     {"{n} webhook found", "{n} webhook encontrado"},
	"webhooks.found.other":   {"{n} webhooks found", "{n} webhooks encontrados"},
	"webhooks.search":        {"Name, URL or event", "Nome, URL ou evento"},
	"webhooks.search_button": {"Search", "Buscar"},
	"webhooks.new":           {"New webhook", "Novo webhook"},
	"webhooks.none":          {"This account has no webhooks yet.", "Esta conta ainda não tem webhooks."},
	"webhooks.none_found":    {"No webhook has “{query}” in its name, URL or event.", "Nenhum webhook tem “{query}” no nome, na URL ou no evento."},
	"webhooks.all":           {"Show all webhooks", "Mostrar todos os webhooks"},

	"webhook.title":            {"Webhook", "Webhook"},
	"webhook.test":             {"Send a test", "Enviar teste"},
	"webhook.edit":             {"Edit", "Editar"},
	"webhook.suspend":          {"Suspend", "Suspender"},
	"webhook.suspend_title":    {"Suspend this URL?", "Suspender esta URL?"},
	"webhook.suspend_about":    {"Nothing is sent to it, from any webhook of the account with this URL, until you resume it or change the URL. Notifications wait meanwhile; none is lost, unless they wait longer than allowed.", "Nada é enviado a ela, por nenhum webhook da conta com esta URL, até que você a retome ou altere. As notificações esperam; nenhuma se perde, a não ser que esperem além do permitido."},
	"webhook.rotate":           {"New secret", "Novo segredo"},
	"webhook.rotate_title":     {"Make a new signing secret?", "Criar um novo segredo de assinatura?"},
	"webhook.rotate_about":     {"It is shown once. The old one signs along for 24 hours, so that receivers can change over.", "Ele é mostrado uma única vez. O antigo continua assinando por 24 horas, para que os receptores possam trocar."},
	"webhook.delete":           {"Delete", "Excluir"},
	"webhook.delete_title":     {"Delete this webhook?", "Excluir este webhook?"},
	"webhook.delete_about":     {"“{name}” gets no more events, and what waits for it is cancelled. This cannot be undone.", "“{name}” não recebe mais eventos, e o que espera por ele é cancelado. Isso não pode ser desfeito."},
	"webhook.disabled_about":   {"This webhook is disabled: new events are not matched, and what waits is kept until it is active again.", "Este webhook está desativado: eventos novos não são associados, e o que espera é guardado até que ele seja ativado."},
	"webhook.traffic":          {"Notifications", "Notificações"},
	"webhook.facts":            {"Details", "Detalhes"},
	"webhook.no_auth":          {"none", "nenhum"},
	"webhook.created":          {"Created", "Criado"},
	"webhook.updated":          {"Changed", "Alterado"},
	"webhook.notifications":    {"Recent notifications", "Notificações recentes"},
	"webhook.tail":             {"Watch live", "Acompanhar ao vivo"},
	"webhook.filter":           {"State", "Estado"},
	"webhook.all":              {"All", "Todas"},
	"webhook.no_notifications": {"No notifications yet. Send a test to see one.", "Ainda não há notificações. Envie um teste para ver uma."},
	"webhook.none_in_state":    {"No notification is in this state.", "Nenhuma notificação está neste estado."},

	"suspension.failing":       {"Suspended: it always failed", "Suspenso: sempre falhou"},
	"suspension.failing_about": {"The URL answered with errors only, so it was set aside at {since}. Notifications wait and are sent once it works again.", "A URL só respondeu com erros, por isso foi separada em {since}. As notificações esperam e são enviadas quando ela voltar a funcionar."},
	"suspension.by_hand":       {"Suspended by hand", "Suspenso manualmente"},
	"suspension.by_hand_about": {"The URL was suspended by hand at {since}. Notifications wait until it is resumed or changed; it is not tried meanwhile.", "A URL foi suspensa manualmente em {since}. As notificações esperam até que ela seja retomada ou alterada; ela não é testada enquanto isso."},
	"suspension.failures":      {"Failures in a row", "Falhas seguidas"},
	"suspension.statuses":      {"Answers", "Respostas"},
	"suspension.between":       {"Between", "Entre"},
	"suspension.parked":        {"Waiting", "Em espera"},
	"suspension.oldest":        {"oldest {at}", "a mais antiga {at}"},
	"suspension.next":          {"Next trial", "Próximo teste"},
	"suspension.resume":        {"Resume now", "Retomar agora"},
	"suspension.last_attempt":  {"Last failed attempt", "Última tentativa com falha"},

	"form.new":           {"New webhook", "Novo webhook"},
	"form.edit":          {"Edit webhook", "Editar webhook"},
	"form.wrong":         {"Nothing was saved. Please look at the marked fields.", "Nada foi salvo. Veja os campos marcados."},
	"form.name":          {"Name", "Nome"},
	"form.name_hint":     {"For people; 1 to 255 characters.", "Para pessoas; de 1 a 255 caracteres."},
	"form.event":         {"Event", "Evento"},
	"form.event_hint":    {"A name such as crm_deal_created, or a pattern with one *: crm_deal_*, crm_*_deleted, *.", "Um nome como crm_deal_created, ou um padrão com um *: crm_deal_*, crm_*_deleted, *."},
	"form.method":        {"Method", "Método"},
	"form.url":           {"URL", "URL"},
	"form.url_hint":      {"The whole address, such as https://example.com/hooks.", "O endereço completo, como https://example.com/hooks."},
	"form.auth":          {"Authentication", "Autenticação"},
	"form.auth_hint":     {"A header that is sent with every request, for the receiver to check. Optional.", "Um cabeçalho enviado em toda requisição, para o receptor conferir. Opcional."},
	"form.auth_header":   {"Header name", "Nome do cabeçalho"},
	"form.auth_key":      {"Header value", "Valor do cabeçalho"},
	"form.auth_key_keep": {"Stored and never shown. Leave it empty to keep it; empty both to remove it.", "Guardado e nunca mostrado. Deixe vazio para manter; esvazie os dois para remover."},
	"form.signature":     {"Signature", "Assinatura"},
	"form.hmac":          {"HMAC: a secret that the receiver has too", "HMAC: um segredo que o receptor também tem"},
	"form.ed25519":       {"Ed25519: the receiver has a public key only", "Ed25519: o receptor tem só uma chave pública"},
	"form.public_key":    {"Public key", "Chave pública"},
	"form.status":        {"Status", "Situação"},
	"form.active":        {"Active", "Ativo"},
	"form.active_hint":   {"Events are sent.", "Os eventos são enviados."},
	"form.disabled":      {"Disabled", "Desativado"},
	"form.disabled_hint": {"New events are not matched; what waits is kept until it is active again.", "Eventos novos não são associados; o que espera é guardado até a reativação."},
	"form.create":        {"Create webhook", "Criar webhook"},
	"form.save":          {"Save", "Salvar"},
	"form.cancel":        {"Cancel", "Cancelar"},

	"portal.title":   {"Webhooks", "Webhooks"},
	"portal.about":   {"You are about to open the webhooks of the account {account}.", "Você vai abrir os webhooks da conta {account}."},
	"portal.go_on":   {"Go on", "Continuar"},
	"portal.ended":   {"This session has ended.", "Esta sessão terminou."},
	"portal.bad":     {"This link is not complete.", "Este link não está completo."},
	"portal.expired": {"This link has expired.", "Este link expirou."},
	"portal.used":    {"This link was used already; it opens the webhooks once.", "Este link já foi usado; ele abre os webhooks uma única vez."},
	"portal.again":   {"Open the webhooks again where you found them.", "Abra os webhooks de novo onde você os encontrou."},

	"secret.label":  {"Signing secret", "Segredo de assinatura"},
	"secret.copy":   {"Copy", "Copiar"},
	"secret.copied": {"Copied", "Copiado"},
	"secret.once":   {"It is shown this once. Store it where your receiver verifies signatures.", "Ele é mostrado só desta vez. Guarde-o onde seu receptor verifica as assinaturas."},

	"done.created":           {"The webhook is registered.", "O webhook foi registrado."},
	"done.changed":           {"The webhook was changed.", "O webhook foi alterado."},
	"done.changed_soon":      {"The webhook was changed; its suspension is being lifted.", "O webhook foi alterado; a suspensão está sendo retirada."},
	"done.suspended":         {"The URL is suspended.", "A URL está suspensa."},
	"done.resumed":           {"The URL is active again; what waited is being released.", "A URL está ativa de novo; o que esperava está sendo liberado."},
	"done.soon":              {"This was noted and will take effect in a moment.", "Isso foi anotado e terá efeito em instantes."},
	"done.test":              {"A sample event is on its way.", "Um evento de exemplo está a caminho."},
	"done.rotated_key":       {"There is a new key pair; its public key is below. The old one signs along for 24 hours.", "Há um novo par de chaves; a chave pública está abaixo. O antigo continua assinando por 24 horas."},
	"done.rotated":           {"There is a new signing secret. The old one signs along for 24 hours.", "Há um novo segredo de assinatura. O antigo continua assinando por 24 horas."},
	"done.deleted":           {"“{name}” was deleted.", "“{name}” foi excluído."},
	"done.resent":            {"It is being sent again.", "Ela está sendo reenviada."},
	"done.resent_many.one":   {"{n} notification is being sent again.", "{n} notificação está sendo reenviada."},
	"done.resent_many.other": {"{n} notifications are being sent again.", "{n} notificações estão sendo reenviadas."},
	"done.resent_some":       {"{sent} are being sent again, {refused} could not be: they are on their way already, or their payload or webhook is gone.", "{sent} estão sendo reenviadas, {refused} não puderam: já estão a caminho, ou o payload ou o webhook não existe mais."},
	"done.none_chosen":       {"Choose at least one notification.", "Escolha ao menos uma notificação."},

	"notification.title":           {"Notification", "Notificação"},
	"notification.webhook_deleted": {"deleted webhook", "webhook excluído"},
	"notification.send":            {"send {send}", "envio {send}"},
	"notification.resend":          {"Send again", "Reenviar"},
	"notification.explain":         {"Why it is in this state", "Por que ela está neste estado"},
	"notification.timeline":        {"Timeline", "Linha do tempo"},
	"notification.partial":         {"Older steps are not shown: they have aged out, or there are very many.", "Passos mais antigos não são mostrados: já expiraram, ou são muitos."},
	"notification.no_steps":        {"Nothing has happened yet.", "Nada aconteceu ainda."},
	"notification.created":         {"First seen", "Vista pela primeira vez"},
	"notification.id":              {"Notification (webhook-id)", "Notificação (webhook-id)"},
	"notification.event_id":        {"Event id", "Id do evento"},
	"notification.replay":          {"Replay", "Reprocessamento"},
	"notification.payload":         {"Payload", "Payload"},
	"notification.download":        {"Download", "Baixar"},
	"notification.payload_cut":     {"Only the beginning is shown; download it to see all.", "Só o começo é mostrado; baixe para ver tudo."},
	"notification.payload_gone":    {"The event is not kept any more, so it cannot be shown or sent again.", "O evento não é mais mantido, então não pode ser mostrado nem reenviado."},
	"notification.payload_away":    {"The payload cannot be read at the moment.", "O payload não pode ser lido no momento."},

	"step.attempt":     {"Attempt {number}", "Tentativa {number}"},
	"step.parked":      {"Parked", "Colocada em espera"},
	"step.cancelled":   {"Cancelled: its webhook was deleted", "Cancelada: o webhook foi excluído"},
	"step.failed":      {"Set aside", "Separada"},
	"step.expired":     {"Expired", "Expirou"},
	"step.resent":      {"Sent again", "Reenviada"},
	"step.replayed":    {"Sent again by a replay:", "Reenviada por um reprocessamento:"},
	"step.probe":       {"Trial of a suspended URL", "Teste de uma URL suspensa"},
	"step.request":     {"Request", "Requisição"},
	"step.response":    {"Response", "Resposta"},
	"step.binary":      {"The body is not text; what is not UTF-8 is replaced.", "O corpo não é texto; o que não é UTF-8 foi substituído."},
	"step.no_body":     {"No body.", "Sem corpo."},
	"step.no_response": {"There was no response.", "Não houve resposta."},

	"phase.dns":        {"DNS", "DNS"},
	"phase.connect":    {"Connect", "Conexão"},
	"phase.tls":        {"TLS", "TLS"},
	"phase.first_byte": {"Answer", "Resposta"},
	"phase.other":      {"Other", "Outros"},
	"phase.no_answer":  {"No answer", "Sem resposta"},

	"failures.title":                  {"Permanent failures", "Falhas permanentes"},
	"failures.about":                  {"Notifications whose attempts all failed, over all webhooks of the account.", "Notificações cujas tentativas falharam todas, em todos os webhooks da conta."},
	"failures.none":                   {"No permanent failures. Nothing to do here.", "Nenhuma falha permanente. Nada a fazer aqui."},
	"failures.select":                 {"Select", "Selecionar"},
	"failures.select_page":            {"Select this page", "Selecionar esta página"},
	"failures.select_one":             {"Select {event} of {webhook}", "Selecionar {event} de {webhook}"},
	"failures.resend_selected":        {"Send selected again", "Reenviar selecionadas"},
	"failures.resend_all":             {"Send all again ({total})", "Reenviar todas ({total})"},
	"failures.resend_all_many":        {"Send the newest {total} again", "Reenviar as {total} mais recentes"},
	"failures.resend_all_title":       {"Send all again?", "Reenviar todas?"},
	"failures.resend_all_about.one":   {"{n} notification gets a new send with up to 6 attempts.", "{n} notificação recebe um novo envio com até 6 tentativas."},
	"failures.resend_all_about.other": {"{n} notifications get a new send each, with up to 6 attempts.", "{n} notificações recebem um novo envio cada, com até 6 tentativas."},

	"replay.title":               {"Replay", "Reprocessamento"},
	"replay.heading":             {"Replay", "Reprocessamento"},
	"replay.about":               {"Send the events of a range of time to this webhook again. You see how many there are before anything is sent.", "Envie de novo a este webhook os eventos de um período. Você vê quantos são antes de qualquer envio."},
	"replay.range":               {"{from} to {to}", "{from} a {to}"},
	"replay.from":                {"From", "De"},
	"replay.to":                  {"To", "Até"},
	"replay.to_hint":             {"Leave “To” empty for now.", "Deixe “Até” vazio para agora."},
	"replay.zone":                {"Times are in {zone}.", "Os horários são de {zone}."},
	"replay.only":                {"Only those", "Somente as"},
	"replay.only_all":            {"All that have ended", "Todas que terminaram"},
	"replay.rate":                {"Per second", "Por segundo"},
	"replay.preview":             {"Preview", "Prévia"},
	"replay.preview_about.one":   {"{n} event would be sent. Nothing has been sent yet.", "{n} evento seria enviado. Nada foi enviado ainda."},
	"replay.preview_about.other": {"{n} events would be sent. Nothing has been sent yet.", "{n} eventos seriam enviados. Nada foi enviado ainda."},
	"replay.preview_none":        {"There is no event in this range.", "Não há eventos neste período."},
	"replay.events":              {"Events", "Eventos"},
	"replay.bytes":               {"Size", "Tamanho"},
	"replay.takes":               {"Takes about", "Leva cerca de"},
	"replay.progress":            {"Progress", "Progresso"},
	"replay.sent":                {"Sent", "Enviadas"},
	"replay.skipped":             {"Skipped", "Ignoradas"},
	"replay.skipped_hint":        {"Skipped are those that are still on their way, or not in the chosen state.", "São ignoradas as que ainda estão a caminho, ou não estão no estado escolhido."},
	"replay.total":               {"Total", "Total"},
	"replay.start":               {"Start", "Iniciar"},
	"replay.discard":             {"Discard", "Descartar"},
	"replay.pause":               {"Pause", "Pausar"},
	"replay.resume":              {"Go on", "Continuar"},
	"replay.cancel":              {"Cancel replay", "Cancelar reprocessamento"},
	"replay.state.preview":       {"Preview", "Prévia"},
	"replay.state.running":       {"Running", "Em andamento"},
	"replay.state.paused":        {"Paused", "Pausado"},
	"replay.state.done":          {"Done", "Concluído"},
	"replay.state.cancelled":     {"Cancelled", "Cancelado"},

	"tail.title":        {"Live tail", "Ao vivo"},
	"tail.about":        {"Attempts as they happen, newest first.", "Tentativas no momento em que acontecem, as mais recentes primeiro."},
	"tail.webhook":      {"Webhook", "Webhook"},
	"tail.outcome":      {"Outcome", "Desfecho"},
	"tail.all_webhooks": {"All webhooks", "Todos os webhooks"},
	"tail.webhook_id":   {"Id of a webhook; all when empty", "Id de um webhook; todos se vazio"},
	"tail.all_outcomes": {"All outcomes", "Todos os desfechos"},
	"tail.apply":        {"Apply", "Aplicar"},
	"tail.connecting":   {"Connecting…", "Conectando…"},
	"tail.open":         {"Live", "Ao vivo"},
	"tail.lost":         {"Connection lost; trying again", "Conexão perdida; tentando de novo"},
	"tail.paused":       {"Paused", "Pausado"},
	"tail.signed_out":   {"Your session has ended; sign in again.", "Sua sessão terminou; entre de novo."},
	"tail.pause":        {"Pause", "Pausar"},
	"tail.resume":       {"Resume", "Continuar"},
	"tail.clear":        {"Clear", "Limpar"},
	"tail.empty":        {"Waiting for attempts. They appear here as they happen.", "Aguardando tentativas. Elas aparecem aqui quando acontecem."},
	"tail.attempt":      {"no. {number}", "nº {number}"},
	"tail.news_one":     {"1 new attempt", "1 nova tentativa"},
	"tail.news":         {"{n} new attempts", "{n} novas tentativas"},
	"tail.no_script":    {"The live tail needs JavaScript.", "O acompanhamento ao vivo precisa de JavaScript."},

	"problem.not_found":              {"This account has nothing with that id.", "Esta conta não tem nada com esse id."},
	"problem.no_such_page":           {"There is no such page.", "Esta página não existe."},
	"problem.read_only":              {"Your token may only read.", "Seu token só pode ler."},
	"problem.one_webhook":            {"You see one webhook only.", "Você vê um único webhook."},
	"problem.portal_unavailable":     {"It is not known whether the link was used up. Try again, or open a new one.", "Não se sabe se o link foi usado. Tente de novo, ou abra um novo."},
	"problem.plain_http":             {"The console opens no session over plain HTTP; open the link with https.", "O console não abre sessão por HTTP simples; abra o link com https."},
	"problem.forbidden":              {"Your token belongs to one account.", "Seu token pertence a uma única conta."},
	"problem.cross_origin":           {"The form was sent from another site, so it was not accepted.", "O formulário foi enviado de outro site, por isso não foi aceito."},
	"problem.bad_form":               {"The form cannot be read.", "O formulário não pode ser lido."},
	"problem.too_large":              {"That is too much at once.", "Isso é demais de uma só vez."},
	"problem.rate_limited":           {"Your token makes more requests than it may; wait a moment.", "Seu token faz mais requisições do que pode; espere um momento."},
	"problem.broker_unavailable":     {"The message broker does not answer. Nothing may have been changed; try again.", "O broker de mensagens não responde. Talvez nada tenha sido alterado; tente de novo."},
	"problem.index_unavailable":      {"Lists of notifications are away, because Redis does not answer.", "As listas de notificações estão indisponíveis, porque o Redis não responde."},
	"problem.suspension_unavailable": {"The command could not be stored; is the suspension-monitor running? Try again.", "O comando não pôde ser guardado; o suspension-monitor está rodando? Tente de novo."},
	"problem.too_many_tails":         {"There are as many live tails as this process serves; close one, or try later.", "Já há tantos acompanhamentos ao vivo quanto este processo atende; feche um, ou tente depois."},
	"problem.internal_error":         {"The page could not be made. The log has the reason.", "A página não pôde ser feita. O log tem o motivo."},
	"problem.event_expired":          {"The event is not kept any more, so it cannot be sent again.", "O evento não é mais mantido, então não pode ser reenviado."},
	"problem.webhook_deleted":        {"Its webhook was deleted, so there is nowhere to send it.", "O webhook foi excluído, então não há para onde enviar."},
	"problem.still_on_its_way":       {"It is still on its way; it can be sent again once it ended.", "Ela ainda está a caminho; pode ser reenviada quando terminar."},
	"problem.wrong_state":            {"The replay is in another state by now.", "O reprocessamento já está em outro estado."},
	"problem.too_many_replays":       {"There are too many replays that have not ended; cancel one first.", "Há reprocessamentos demais sem terminar; cancele um antes."},
	"problem.changed_meanwhile":      {"Somebody else changed the webhook meanwhile. Your entries are below; save again to replace it.", "Outra pessoa alterou o webhook enquanto isso. Seus dados estão abaixo; salve de novo para substituir."},
	"problem.webhook_exists":         {"This account has a webhook with this event and URL already.", "Esta conta já tem um webhook com este evento e esta URL."},
	"problem.required":               {"This is needed.", "Isto é necessário."},
	"problem.bad_name":               {"This name cannot be used.", "Este nome não pode ser usado."},
	"problem.unknown_event_name":     {"This event is not known.", "Este evento não é conhecido."},
	"problem.bad_pattern":            {"This is not a pattern of events.", "Isto não é um padrão de eventos."},
	"problem.bad_http_method":        {"This method cannot be used.", "Este método não pode ser usado."},
	"problem.bad_status":             {"This status cannot be set.", "Esta situação não pode ser definida."},
	"problem.bad_signature":          {"Signatures are hmac or ed25519.", "As assinaturas são hmac ou ed25519."},
	"problem.bad_auth_header":        {"This is not a header name.", "Isto não é um nome de cabeçalho."},
	"problem.reserved_auth_header":   {"This header cannot be used.", "Este cabeçalho não pode ser usado."},
	"problem.bad_auth_key":           {"This value cannot be sent in a header.", "Este valor não pode ser enviado em um cabeçalho."},
	"problem.auth_pair":              {"Give both name and value, or neither.", "Informe nome e valor, ou nenhum dos dois."},
	"problem.auth_key_required":      {"The URL has another origin: give the value of the header for it, or remove the header.", "A URL tem outra origem: informe o valor do cabeçalho para ela, ou remova o cabeçalho."},
	"problem.bad_url":                {"This URL cannot be read.", "Esta URL não pode ser lida."},
	"problem.url_too_long":           {"This URL is too long.", "Esta URL é longa demais."},
	"problem.url_forbidden_scheme":   {"This URL must begin with https://.", "Esta URL precisa começar com https://."},
	"problem.url_userinfo":           {"This URL holds a user name or password.", "Esta URL contém usuário ou senha."},
	"problem.url_forbidden_name":     {"This host cannot be reached from outside.", "Este host não pode ser alcançado de fora."},
	"problem.url_forbidden_address":  {"This address is not public.", "Este endereço não é público."},
	"problem.url_forbidden_port":     {"This port is not open here.", "Esta porta não está aberta aqui."},
	"problem.bad_time":               {"This is not a time.", "Isto não é um horário."},
	"problem.bad_range":              {"“From” must be in the past and before “To”.", "“De” precisa estar no passado e antes de “Até”."},
	"problem.bad_state":              {"This state cannot be chosen.", "Este estado não pode ser escolhido."},
	"problem.bad_rate":               {"Give a whole number from 1 to 1000.", "Informe um número inteiro de 1 a 1000."},
}
