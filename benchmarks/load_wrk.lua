-- The same calls by wrk, to hold our own clients against it: BODIES is a file with one JSON body a line.
local ready, turn = {}, 0
local headers = { ["content-type"] = "application/json", ["authorization"] = "Bearer sk-bench" }

function init(_)
  for body in io.lines(os.getenv("BODIES")) do
    ready[#ready + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  turn = turn % #ready + 1
  return ready[turn]
end
