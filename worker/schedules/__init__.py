"""When what is sent: schedules, their ticks, and beat that sends them."""
