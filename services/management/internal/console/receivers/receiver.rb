# A receiver of notifications: SECRET=whsec_... PORT=8900 ruby receiver.rb
require "openssl"
require "base64"
require "socket"

TOLERANCE = 5 * 60 # seconds between the sender's clock and ours

# True when body came from whoever holds secret (whsec_...), a short while ago. headers have lower-case names.
def verify(secret, headers, body)
  id, timestamp = headers.values_at("webhook-id", "webhook-timestamp")
  return false unless id && timestamp&.match?(/\A\d+\z/) && (Time.now.to_i - timestamp.to_i).abs <= TOLERANCE

  key = Base64.decode64(secret.delete_prefix("whsec_"))
  want = "v1," + Base64.strict_encode64(OpenSSL::HMAC.digest("SHA256", key, "#{id}.#{timestamp}.".b + body))
  # Two signatures come while the secret is being rotated: one good one is enough.
  headers.fetch("webhook-signature", "").split(" ").map { |s| OpenSSL.secure_compare(want, s) }.any?
end

# In Rails: body = request.raw_post, headers = request.headers["webhook-id"] and so on.
seen = {} # ids already processed; a real receiver keeps them in its database
server = TCPServer.new("127.0.0.1", Integer(ENV.fetch("PORT", "8900")))
loop do
  client = server.accept
  client.gets # POST / HTTP/1.1
  headers = {}
  while (line = client.gets&.chomp) && !line.empty?
    name, value = line.split(":", 2)
    headers[name.downcase] = value.strip
  end
  body = client.read(headers["content-length"].to_i) || ""
  status = "401 Unauthorized"
  if verify(ENV.fetch("SECRET"), headers, body)
    puts "#{headers["gancho-event"]} #{body}" unless seen[headers["webhook-id"]] # the same one can come twice
    seen[headers["webhook-id"]] = true
    status = "200 OK" # within 5 s: what takes longer belongs into a queue of yours
  end
  $stdout.flush
  client.write "HTTP/1.1 #{status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
  client.close
end
