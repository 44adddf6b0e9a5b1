"""The main job: queued rows get their scores, by the champion and by its challenger."""
