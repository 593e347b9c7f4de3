-- Suspending is a change of the spec: with automatic sync and self-healing, git wins.
local is_suspended = obj.spec.suspend == true
return {
  ["suspend"] = {["disabled"] = is_suspended, ["iconClass"] = "fa fa-fw fa-pause"},
  ["resume"] = {["disabled"] = not is_suspended, ["iconClass"] = "fa fa-fw fa-play"},
}
