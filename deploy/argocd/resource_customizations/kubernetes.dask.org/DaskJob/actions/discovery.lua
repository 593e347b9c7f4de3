-- Suspending is a change of the spec: with automatic sync and self-healing, git wins.
if obj.status ~= nil and (obj.status.jobStatus == "Successful" or obj.status.jobStatus == "Failed") then
  return {}
end
local is_suspended = obj.spec.suspend == true
return {
  ["suspend"] = {["disabled"] = is_suspended, ["iconClass"] = "fa fa-fw fa-pause"},
  ["resume"] = {["disabled"] = not is_suspended, ["iconClass"] = "fa fa-fw fa-play"},
}
