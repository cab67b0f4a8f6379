package explain

import (
	"gancho/pkg/delivery"
	"gancho/services/management/internal/language"
)

//nolint:gochecknoglobals // the texts; they are never written
var (
	both = in("{first} {second}", "{first} {second}")

	pending      = in("The first attempt has not been made yet.", "A primeira tentativa ainda não foi feita.")
	pendingAgain = in("It was sent again (send {send}); the first attempt of this send has not been made yet.", "Ela foi reenviada (envio {send}); a primeira tentativa deste envio ainda não foi feita.")
	pendingNext  = in("It is made as soon as a dispatcher is free, normally within a second.", "Ela é feita assim que um dispatcher estiver livre, normalmente em até um segundo.")
	paused       = in("First attempts pause for all accounts: more retries wait than the store may hold.", "As primeiras tentativas estão em pausa em todas as contas: há mais novas tentativas em espera do que o armazenamento comporta.")
	pausedNext   = in("It is made once enough of those retries are done, in the order of the events.", "Ela é feita quando houver espaço de novo, na ordem dos eventos.")

	failedOne      = in("Attempt {done} of {most} failed.", "A tentativa {done} de {most} falhou.")
	failedHow      = in("Attempt {done} of {most} failed: {how}.", "A tentativa {done} de {most} falhou: {how}.")
	retryNext      = in("Attempt {number} is due at {at}.", "A tentativa {number} está prevista para {at}.")
	retryLast      = in("It is the last one; if it fails too, the notification is permanently failed.", "É a última; se ela também falhar, a notificação vira falha permanente.")
	retrySuspended = in("Its URL is suspended: if it still is then, the notification waits and uses no attempt.", "Sua URL está suspensa: se ainda estiver nessa hora, a notificação espera e não usa nenhuma tentativa.")

	attemptsLeft  = in("{done} of its {most} attempts are used; waiting uses none.", "{done} de suas {most} tentativas foram usadas; a espera não usa nenhuma.")
	disabled      = in("Its webhook is disabled.", "Seu webhook está desativado.")
	disabledNext  = in("It goes on when the webhook's status is set to active again. It does not expire.", "Ela continua quando o webhook for ativado de novo. Não expira.")
	saturated     = in("Its URL has as many requests open as it answers well at a time, or its account holds so much of the room for retries that its first attempts wait.", "Sua URL já tem tantas requisições abertas quanto responde bem por vez, ou a conta ocupa tanto do espaço das novas tentativas que suas primeiras tentativas aguardam.")
	limited       = in("Its URL gets at most {limit} requests per minute (max_per_minute of its webhooks), so it waits for its turn.", "Sua URL recebe no máximo {limit} requisições por minuto (max_per_minute de seus webhooks), por isso ela espera sua vez.")
	limitedNext   = in("It is sent when those ahead of it are, oldest first.", "Ela é enviada depois das anteriores, da mais antiga para a mais nova.")
	limitedUntil  = in("Notifications that wait for this URL: {waiting}. At that rate all of them are sent by about {at}, oldest first.", "Notificações que esperam por esta URL: {waiting}. Nesse ritmo todas são enviadas até cerca de {at}, da mais antiga para a mais nova.")
	wasSaturated  = in("It waited because its URL had as many requests open as it answers well at a time.", "Ela esperava porque sua URL tinha tantas requisições abertas quanto responde bem por vez.")
	saturatedNext = in("It is sent when those ahead of it are answered or the account's retries have shrunk, oldest first.", "Ela é enviada quando as anteriores forem respondidas ou as novas tentativas da conta diminuírem, da mais antiga para a mais nova.")
	released      = in("Its URL was suspended and is active again.", "Sua URL esteve suspensa e está ativa de novo.")
	releasedNext  = in("It is released soon: first one at a time, then more with each that is accepted, oldest first.", "Ela será liberada em breve: primeiro uma por vez, depois mais a cada uma aceita, da mais antiga para a mais nova.")
	byHand        = in("Its URL was suspended by hand at {since}.", "Sua URL foi suspensa manualmente em {since}.")
	byHandNext    = in("It is sent after the webhook is resumed or its URL is changed. It expires if that takes too long (PARKED_MAX_AGE).", "Ela é enviada depois que o webhook for retomado ou sua URL for alterada. Expira se isso demorar demais (PARKED_MAX_AGE).")
	suspended     = in("Its URL has been suspended since {since}: {failures} failures and no success.", "Sua URL está suspensa desde {since}: {failures} falhas e nenhum sucesso.")
	suspendedWith = in("Its URL has been suspended since {since}: {failures} failures and no success ({statuses}).", "Sua URL está suspensa desde {since}: {failures} falhas e nenhum sucesso ({statuses}).")
	suspendedNext = in("The URL is tried again at {until} with the oldest notification that waits; if that is accepted, the others follow. Resuming the webhook does it at once. It expires if its URL stays suspended too long (PARKED_MAX_AGE).", "A URL será testada de novo em {until} com a notificação mais antiga em espera; se for aceita, as outras seguem. Retomar o webhook faz isso na hora. Ela expira se a URL ficar suspensa por tempo demais (PARKED_MAX_AGE).")
	probingNext   = in("The URL is being tried right now with the oldest notification that waits; if that is accepted, the others follow.", "A URL está sendo testada agora com a notificação mais antiga em espera; se for aceita, as outras seguem.")

	accepted      = in("The receiver accepted it.", "O receptor a aceitou.")
	answered      = in("Attempt {number} was answered with {status} after {took}.", "A tentativa {number} foi respondida com {status} após {took}.")
	deliveredNext = in("Nothing more is sent. It can be sent again.", "Nada mais é enviado. Ela pode ser reenviada.")

	allFailed     = in("All {done} attempts failed.", "Todas as {done} tentativas falharam.")
	allFailedLast = in("All {done} attempts failed; the last one: {how}.", "Todas as {done} tentativas falharam; a última: {how}.")
	failedNext    = in("Nothing more is sent by itself. It can be sent again while its payload is kept.", "Nada mais é enviado automaticamente. Ela pode ser reenviada enquanto o payload for mantido.")
	expired       = in("Its URL stayed suspended too long (PARKED_MAX_AGE); {done} of {most} attempts were made.", "Sua URL ficou suspensa por tempo demais (PARKED_MAX_AGE); {done} de {most} tentativas foram feitas.")
	internal      = in("It could not be handled because of a fault in Gancho, and was set aside for the operators.", "Ela não pôde ser tratada por uma falha no Gancho e foi isolada para análise dos operadores.")

	webhookDeleted = in("Its webhook was deleted before it was delivered.", "Seu webhook foi excluído antes da entrega.")
	superseded     = in("A newer event of the same document was delivered while it waited, and its webhook asks to leave out stale ones.", "Um evento mais novo do mesmo documento foi entregue enquanto ela esperava, e seu webhook pede para omitir as desatualizadas.")
	supersededBy   = in("A newer event of the same document ({event}) was delivered while it waited, and its webhook asks to leave out stale ones.", "Um evento mais novo do mesmo documento ({event}) foi entregue enquanto ela esperava, e seu webhook pede para omitir as desatualizadas.")
	erased         = in("Its data was erased on request.", "Seus dados foram apagados a pedido.")
	cancelledNext  = in("Nothing more is sent, and it cannot be sent again.", "Nada mais é enviado, e ela não pode ser reenviada.")

	deferred     = in("The account has had its share of the stores since {since}, so its events wait. None is lost.", "A conta ocupa sua parte do armazenamento desde {since}, por isso seus eventos esperam. Nenhum se perde.")
	deferredNext = in("Its notifications are made as the account's older ones end, oldest event first.", "Suas notificações são criadas à medida que as mais antigas da conta terminam, do evento mais antigo para o mais novo.")
)

// happened says how an attempt failed, by its reason.
//
//nolint:gochecknoglobals // as above
var happened = map[delivery.Reason]language.Text{
	delivery.Timeout:               in("no answer within {took}", "nenhuma resposta em {took}"),
	delivery.DNS:                   in("the host's name could not be looked up", "o nome do host não pôde ser resolvido"),
	delivery.Connect:               in("no connection could be made", "não foi possível conectar"),
	delivery.TLS:                   in("the TLS handshake failed or the certificate is not valid", "a negociação TLS falhou ou o certificado não é válido"),
	delivery.Redirect:              in("the receiver answered {status}, a redirect, which is not followed", "o receptor respondeu {status}, um redirecionamento, que não é seguido"),
	delivery.Status1xx:             in("the receiver answered {status}", "o receptor respondeu {status}"),
	delivery.Status4xx:             in("the receiver answered {status}", "o receptor respondeu {status}"),
	delivery.Status5xx:             in("the receiver answered {status}", "o receptor respondeu {status}"),
	delivery.RateLimited:           in("the receiver answered {status} and asked to slow down", "o receptor respondeu {status} e pediu para reduzir o ritmo"),
	delivery.BlockedAddress:        in("the host's address is not publicly routable, so nothing was sent", "o endereço do host não é público, então nada foi enviado"),
	delivery.BadResponse:           in("the answer was not valid HTTP, or the connection broke before it", "a resposta não era HTTP válido, ou a conexão caiu antes dela"),
	delivery.HeaderLimit:           in("the answer's headers were larger than 64 KiB", "os cabeçalhos da resposta passaram de 64 KiB"),
	delivery.InternalError:         in("a fault in Gancho", "uma falha no Gancho"),
	delivery.ExpiredWhileSuspended: in("it expired", "ela expirou"),
}

// noToken says how an attempt failed that needed a token, whatever its reason.
//
//nolint:gochecknoglobals // as above
var noToken = in("the token server gave no token, so nothing was sent", "o servidor de tokens não deu um token, então nada foi enviado")

// refused says it of one that was answered with 401 or 403.
//
//nolint:gochecknoglobals // as above
var refused = in("the receiver answered {status}: it refuses our credentials", "o receptor respondeu {status}: ele recusa nossas credenciais")

func in(english, portuguese string) language.Text {
	return language.Text{English: english, Portuguese: portuguese}
}
