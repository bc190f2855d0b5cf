-- Sends prepared bodies in rotation and prints one line of JSON at the end.
-- Arguments after the URL: the headers, one per line, then the files of the bodies.

function init(args)
   wrk.method = "POST"
   for name, value in args[1]:gmatch("([^:\n]+): ([^\n]+)") do
      wrk.headers[name] = value
   end
   local requests = {}
   for number = 2, #args do
      local file = assert(io.open(args[number], "rb"))
      requests[#requests + 1] = wrk.format(nil, nil, nil, file:read("*a"))
      file:close()
   end
   local index = 0
   function request()
      index = index % #requests + 1
      return requests[index]
   end
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "microseconds": %d, "p50": %d, "p90": %d, "p99": %d, "rejected": %d, "lost": %d}\n',
      summary.requests, summary.duration,
      latency:percentile(50), latency:percentile(90), latency:percentile(99),
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
